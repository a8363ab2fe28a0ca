"""What one stage of a run was asked, and what came out; a part of `run.json`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo, field_validator

from secateur.checkpoint import LeftDense
from secateur.errors import PatternError, RecipeError
from secateur.recipe.stage import kind_named
from secateur.record.matrices import BlockRecord
from secateur.record.narrowed import LostWidth
from secateur.record.removed import Removed
from secateur.record.schema import Measured, RecordPart, typed_settings
from secateur.sparsity import Structures, parse_pattern


class StageRecord(RecordPart):
    """One stage of a run: what was asked of it, and what came out."""

    kind: str
    """What kind of stage it is; "prune" is one."""
    settings: dict[str, Any]
    """Every option of the stage, defaults included."""
    blocks: tuple[BlockRecord, ...]
    """The model's blocks as the stage left them."""
    seconds: Measured
    """Wall time of the stage but for measuring."""
    notices: tuple[str, ...] = ()
    """What the user should know."""
    left_dense: tuple[LeftDense, ...] = ()
    """What of the model got no pattern, with the reason; a record of an earlier version has none.
    """
    removed: Removed | None = None
    """The blocks that are no longer in the model; None for other patterns."""
    narrowed: LostWidth | None = None
    """What every block has no longer; None for other patterns."""

    @field_validator("settings")
    @classmethod
    def _of_their_types(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            kind = kind_named(info.data.get("kind"))
        except RecipeError:  # of a version that knows more kinds
            return settings
        return typed_settings(settings, kind)

    @property
    def title(self) -> str:
        """What the stage did, in a word: its method, or its kind if it has none."""
        return str(self.settings.get("method", self.kind))

    @property
    def removes(self) -> bool:
        """Whether its pattern is one of structures; what cannot be read is none."""
        try:
            return isinstance(parse_pattern(str(self.settings.get("pattern"))), Structures)
        except PatternError:
            return False

    @property
    def pattern(self) -> str | None:
        """The pattern in its one spelling, so that 0.5 and 50% are one; None if it has none."""
        written = self.settings.get("pattern")
        if written is None:
            return None
        try:
            return str(parse_pattern(str(written)))
        except PatternError:
            return str(written)
