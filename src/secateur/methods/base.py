"""What a pruning method is: a name, a paper, what it needs, and one function.

A method is one of two kinds:

    score   (weight, statistics, params) -> importance of every weight; the mask follows from it
    solve   (weights, statistics, pattern, params) -> keep-masks and corrected weights, of all
            matrices that read the same input, and so share their Hessian

and may ask for a refinement of the kept weights once the mask is there (`Refine`). Registering is
the decorator's doing; importing the file is all it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from secateur.errors import RecipeError, closest
from secateur.sparsity import Competition, Pattern
from secateur.statistics import Need, Order, Statistics

PAPER_SEQUENCES, PAPER_LENGTH = 128, 2048
"""Calibration sequences of the papers and tokens in each, to which their constants belong."""


class Refine(StrEnum):
    """What happens to the kept weights after the mask is chosen."""

    NONE = "none"
    REGIONAL = "regional"
    """Gradient steps on the block's output error, in rounds (Wanda++ RO)."""


class Params(BaseModel):
    """Parameters of a method, all with defaults: frozen, and unknown names are errors.

    Attributes:
        published: what the paper has where the defaults differ, for `--preset paper`.
        competition: which weights compete for an unstructured budget; N:M patterns ignore it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    published: ClassVar[dict[str, Any]] = {}

    competition: Competition = Competition.ROW
    """Weights compete within their output row, or across the whole layer (unstructured only)."""

    @property
    def chosen_competition(self) -> Competition:
        """Who competes with whom once all parameters are known."""
        return self.competition

    @property
    def gradient_order(self) -> Order:
        """How full-model gradients of the sequences are combined, for a method that reads them."""
        return "l2"

    @property
    def candidates(self) -> tuple[Self, ...]:
        """What every block chooses among, by its own error; these alone leave nothing to choose."""
        return (self,)

    def objection(self, pattern: Pattern) -> str | None:
        """Why these parameters cannot go with `pattern`, or None."""
        return None


@dataclass(frozen=True)
class Solution:
    """What a solving method returns, in the order of the matrices it was given.

    Attributes:
        weights: float32 [out, in] each, zero where pruned.
        keep: bool [out, in] each.
        notices: what the user should know, a line each.
    """

    weights: Sequence[Tensor]
    keep: Sequence[Tensor]
    notices: tuple[str, ...] = ()


def describe_fields(settings: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Name of every parameter -> its default as one would write it, and what it means."""
    defaults = settings().model_dump(mode="json")
    return {
        name: (json.dumps(defaults[name]).strip('"'), field.description or "")
        for name, field in settings.model_fields.items()
    }


ScoreFunction = Callable[[Tensor, Statistics, Any], Tensor]
SolveFunction = Callable[[Sequence[Tensor], Statistics, Pattern, Any], Solution]


@dataclass(frozen=True)
class Method:
    """One registered method.

    Attributes:
        name: what the user types.
        summary: one line, from the function's docstring.
        paper: address of the source.
        needs: the statistics it reads.
        params: the class of its parameters, all with defaults.
        refine: what is done to the kept weights afterwards.
        score, solve: exactly one of the two functions.
    """

    name: str
    summary: str
    paper: str
    needs: frozenset[Need]
    params: type[Params]
    refine: Refine
    score: ScoreFunction | None = None
    solve: SolveFunction | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether the method reads anything besides the weights."""
        return bool(self.needs) or self.refine is not Refine.NONE

    def describe(self) -> dict[str, Any]:
        """The method as plain values, for listings."""
        return {
            "name": self.name,
            "summary": self.summary,
            "needs": sorted(self.needs) + ["calibration"] * self.needs_calibration,
            "refine": self.refine.value,
            "parameters": describe_fields(self.params),
            "paper": self.paper,
        }


_Score = TypeVar("_Score", bound=ScoreFunction)
_Solve = TypeVar("_Solve", bound=SolveFunction)

_registry: dict[str, Method] = {}


def score(
    name: str,
    *,
    paper: str,
    needs: set[Need] | None = None,
    params: type[Params] = Params,
    refine: Refine = Refine.NONE,
) -> Callable[[_Score], _Score]:
    """Register a scoring function under `name`; it is returned unchanged."""

    def register(function: _Score) -> _Score:
        all_needs = frozenset(needs or ())
        _add(Method(name, _summary(function), paper, all_needs, params, refine, score=function))
        return function

    return register


def solve(
    name: str,
    *,
    paper: str,
    needs: set[Need],
    params: type[Params] = Params,
    refine: Refine = Refine.NONE,
) -> Callable[[_Solve], _Solve]:
    """Register a solving function under `name`; it is returned unchanged."""

    def register(function: _Solve) -> _Solve:
        all_needs = frozenset(needs)
        _add(Method(name, _summary(function), paper, all_needs, params, refine, solve=function))
        return function

    return register


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
        RecipeError: there is none; the message lists those that there are.
    """
    if name not in _registry:
        raise RecipeError(f"unknown method {name!r}", wanted=closest(name, _registry))
    return _registry[name]


def every() -> tuple[Method, ...]:
    """All registered methods, oldest paper first (its number on arXiv is its date)."""
    return tuple(sorted(_registry.values(), key=lambda method: method.paper))


def _add(method: Method) -> None:
    if method.name in _registry:
        raise ValueError(f"two methods are called {method.name!r}")
    _registry[method.name] = method


def _summary(function: Callable[..., Any]) -> str:
    lines = (function.__doc__ or "").strip().splitlines()  # none under PYTHONOPTIMIZE=2
    return lines[0] if lines else ""
