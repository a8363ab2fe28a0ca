"""Parameters of the methods: frozen records with a default for everything.

Params           what every method has
WeightParams     of a method that chooses among weights
RemovalParams    of a method that removes blocks
AbsenceParams    of a method that asks what a block gives without an expert
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from secateur.machine.exact import ExactModel
from secateur.sparsity import Competition, Pattern
from secateur.statistics import Order


class Params(ExactModel):
    """Parameters of a method, all with defaults: frozen, and unknown names are errors.

    Attributes:
        published: what the paper has where the defaults differ, for `--preset paper`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    published: ClassVar[dict[str, Any]] = {}

    @property
    def chosen_competition(self) -> Competition:
        """Who competes with whom once all parameters are known."""
        return Competition.ROW

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


class WeightParams(Params):
    """Parameters of a method that chooses among weights.

    Attributes:
        competition: which weights compete for an unstructured budget; N:M patterns ignore it.
    """

    competition: Competition = Competition.ROW
    """Weights compete within their output row, or across the whole layer (unstructured only)."""

    @property
    def chosen_competition(self) -> Competition:
        """Who competes with whom once all parameters are known."""
        return self.competition


class RemovalParams(Params):
    """Parameters of a method that removes structures."""

    contiguous: bool = False
    """Remove structures that follow each other, scored together, in place of any."""


class AbsenceParams(Params):
    """Parameters of a method that asks what a block gives without an expert."""

    tokens: int = Field(default=4096, ge=1)
    """Calibration tokens to ask with at most, but one sequence at least: each has the outputs of
    all experts held for it, a block at a time."""


def describe_fields(settings: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Name of every parameter -> its default as one would write it, and what it means."""
    defaults = settings().model_dump(mode="json")
    return {
        name: (json.dumps(defaults[name]).strip('"'), field.description or "")
        for name, field in settings.model_fields.items()
    }
