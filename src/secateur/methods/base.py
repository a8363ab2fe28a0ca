"""What a pruning method is: a name, a paper, what it needs, and one function.

A method is one of three kinds:

    score   (weight, statistics, params) -> importance of every weight; the mask follows from it
    solve   (weights, statistics, pattern, params) -> keep-masks and corrected weights, of all
            matrices that read the same input, and so share their Hessian
    remove  (what the data say of a structure, such as a block or an expert) -> its importance; the
            least important are removed from the model (`removal.py`)

and may ask for a refinement of the kept weights once the mask is there (`Refine`). Registering is
the decorator's doing; importing the file is all it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from torch import Tensor

from secateur.errors import RecipeError, closest
from secateur.methods.parameters import (
    AbsenceParams,
    Params,
    RemovalParams,
    WeightParams,
    describe_fields,
)
from secateur.methods.removal import Removal, RemovalKind
from secateur.sparsity import UNITS, Pattern
from secateur.statistics import Need, Statistics

PAPER_SEQUENCES, PAPER_LENGTH = 128, 2048
"""Calibration sequences of the papers and tokens in each, to which their constants belong."""


class Refine(StrEnum):
    """What happens to the kept weights after the mask is chosen."""

    NONE = "none"
    REGIONAL = "regional"
    """Gradient steps on the block's output error, in rounds (Wanda++ RO)."""


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
        score, solve, removal: exactly one of the three.
    """

    name: str
    summary: str
    paper: str
    needs: frozenset[Need]
    params: type[Params]
    refine: Refine
    score: ScoreFunction | None = None
    solve: SolveFunction | None = None
    removal: Removal | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether the method reads anything besides the weights."""
        return bool(self.needs or self.removal) or self.refine is not Refine.NONE

    @property
    def corrects(self) -> bool:
        """Whether what is left of structures makes up for those that it removes."""
        return self.removal is not None and self.removal.of_hessian is not None

    @property
    def units(self) -> tuple[str, ...]:
        """The structures of which it can tell which go: by a score of theirs, or of weights.

        Of a method that scores weights the sum over those of a structure counts; blocks are not
        compared by what the data say of their matrices, which is of another size in each.
        """
        if self.removal is not None:
            return self.removal.units
        if self.score is None or self.refine is not Refine.NONE:
            return ()
        if Need.FULL_GRADIENT in self.needs:
            return ()
        return ("ffn", "heads") if self.needs_calibration else ("blocks", "ffn", "heads")

    def describe(self) -> dict[str, Any]:
        """The method as plain values, for listings."""
        return {
            "name": self.name,
            "summary": self.summary,
            "needs": sorted(self.needs) + ["calibration"] * self.needs_calibration,
            "removes": list(self.units),
            "refine": self.refine.value,
            "parameters": describe_fields(self.params),
            "paper": self.paper,
        }


_Score = TypeVar("_Score", bound=ScoreFunction)
_Solve = TypeVar("_Solve", bound=SolveFunction)
_Remove = TypeVar("_Remove", bound=Callable[..., Any])

_NEEDS = {"of_inputs": {Need.INPUT_NORM}, "of_hessian": {Need.HESSIAN}}
_PARAMS: dict[str, type[Params]] = {
    "of_states": RemovalParams, "of_effect": RemovalParams, "of_absence": AbsenceParams,
}  # fmt: skip

_registry: dict[str, Method] = {}


def score(
    name: str,
    *,
    paper: str,
    needs: set[Need] | None = None,
    params: type[Params] = WeightParams,
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
    params: type[Params] = WeightParams,
    refine: Refine = Refine.NONE,
) -> Callable[[_Solve], _Solve]:
    """Register a solving function under `name`; it is returned unchanged."""

    def register(function: _Solve) -> _Solve:
        all_needs = frozenset(needs)
        _add(Method(name, _summary(function), paper, all_needs, params, refine, solve=function))
        return function

    return register


def remove(
    name: str, by: RemovalKind, *, paper: str, again: bool = False
) -> Callable[[_Remove], _Remove]:
    """Register a function that scores structures, `by` what it is given (`Removal`); it is
    returned unchanged.
    """

    def register(function: _Remove) -> _Remove:
        scores: dict[str, Any] = {by: function}
        removal, params = Removal(**scores, again=again), _PARAMS.get(by, Params)
        summary, needs = _summary(function), frozenset(_NEEDS.get(by, ()))
        _add(Method(name, summary, paper, needs, params, Refine.NONE, removal=removal))
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
    """All methods that choose weights, oldest paper first (its number on arXiv is its date)."""
    return tuple(method for method in _by_date() if method.removal is None)


def every_remover(unit: str | None = None) -> tuple[Method, ...]:
    """All methods that choose structures to remove, or those of one kind, oldest paper first."""
    units = {unit} if unit is not None else set(UNITS)
    return tuple(method for method in _by_date() if units & {*method.units})


def every_of_both() -> tuple[Method, ...]:
    """All methods once: those that choose weights, then those that only remove structures."""
    return tuple(dict.fromkeys((*every(), *every_remover())))


def _by_date() -> list[Method]:
    return sorted(_registry.values(), key=lambda method: method.paper)


def _add(method: Method) -> None:
    if method.name in _registry:
        raise ValueError(f"two methods are called {method.name!r}")
    _registry[method.name] = method


def _summary(function: Callable[..., Any]) -> str:
    lines = (function.__doc__ or "").strip().splitlines()  # none under PYTHONOPTIMIZE=2
    return lines[0] if lines else ""
