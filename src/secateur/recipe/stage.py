"""What is done to a model in one go: a stage. A recipe is a list of them, of one kind or several.

A kind of stage is a class of settings with a name, known from the moment it is registered:

    @register
    class PruneStage(Stage):
        kind = "prune"

Recipes, records, resuming and reports ask the class for its fields and their marks, and so need
not be touched when a kind is added.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict

from secateur.errors import RecipeError, closest
from secateur.machine.exact import ExactModel

KIND = "kind"
"""The key that names the kind of a stage in a recipe file; without it a stage prunes."""
STAGES = "stages"
"""The key of the list of stages in a recipe."""
PRUNE = "prune"
"""The kind of a stage that names none, and of a recipe without a list of stages."""


class Stage(ExactModel):
    """Settings of one stage. Every field carries its text, default and mark (`setting.py`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=False
    )

    kind: ClassVar[str]
    """The name of the kind, as a recipe file writes it."""
    finishes: ClassVar[bool] = False
    """Whether it goes on with a pruned model as a whole, and so is the last stage."""

    @classmethod
    def faults(cls, values: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
        """What is wrong with the settings of a stage together, a phrase each.

        Args:
            values: settings of the stage, unchecked; a key that is not there has its default.
            run: settings of the run, unchecked.
        """
        return []

    @property
    def title(self) -> str:
        """What the stage does, in a word or two."""
        return self.kind

    def stage_options(self) -> dict[str, Any]:
        """Every setting of the stage with its default written down, but not its kind."""
        return self.model_dump()


_KINDS: dict[str, type[Stage]] = {}

S = TypeVar("S", bound=Stage)


def register(kind: type[S]) -> type[S]:
    """Make a kind of stage known by its name.

    Raises:
        ValueError: the name is taken, which is a fault of the program.
    """
    if kind.kind in _KINDS:
        raise ValueError(f"two kinds of stages are called {kind.kind!r}")
    _KINDS[kind.kind] = kind
    return kind


def kind_named(name: object) -> type[Stage]:
    """The class of a kind of stage.

    Raises:
        RecipeError: there is none of that name.
    """
    if isinstance(name, str) and name in _KINDS:
        return _KINDS[name]
    raise RecipeError(
        f"unknown kind of stage {reprlib.repr(name)}", wanted=closest(reprlib.repr(name), _KINDS)
    )


def read_stage(values: Mapping[str, Any]) -> Stage:
    """The stage that values of a recipe ask for.

    Raises:
        RecipeError: its kind is unknown.
        ValidationError: a setting does not fit.
    """
    settings = dict(values)
    return kind_named(settings.pop(KIND, PRUNE)).model_validate(settings)
