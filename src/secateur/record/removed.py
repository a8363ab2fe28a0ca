"""Which structures a stage removed, in its record."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from secateur.checkpoint import BlockModel
from secateur.machine.limits import MOST_BLOCKS
from secateur.record.schema import RecordPart, WholeNumber


class Removed(RecordPart):
    """Which blocks of a model went, and what they were chosen by."""

    of: Annotated[int, Field(ge=2, le=MOST_BLOCKS)]
    """How many blocks the model had."""
    removed: tuple[WholeNumber, ...]
    """The numbers of those that went, in the order in which they were chosen."""
    weights: WholeNumber
    """In the matrices of those that went."""
    importance: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    """Of every block, or of several that begin there, before any was removed; a divergence of
    nearly nothing may be rounded to less than that."""

    @model_validator(mode="after")
    def _some_stay(self) -> Self:
        if len({*self.removed}) != len(self.removed) or not 0 < len(self.removed) < self.of:
            raise ValueError(f"{len(self.removed)} blocks of {self.of} cannot have been removed")
        if max(self.removed) >= self.of:
            raise ValueError(f"block {max(self.removed)} was not among {self.of}")
        return self

    @property
    def unit(self) -> str:
        """What went."""
        return "blocks"

    @property
    def blocks(self) -> int | None:
        """Blocks that are told of one by one."""
        return None

    @property
    def multiple(self) -> int:
        """Of which so many are left."""
        return 1

    @property
    def lost(self) -> int:
        """How many went."""
        return len(self.removed)

    @property
    def left(self) -> int:
        """How many stayed."""
        return self.of - len(self.removed)

    @property
    def which(self) -> str:
        """Those that went, in words."""
        return ", ".join(map(str, sorted(self.removed)))

    def taken_from(self, model: BlockModel) -> BlockModel:
        """A model without these blocks."""
        return model.without_blocks(self.removed)

    def __str__(self) -> str:
        return f"blocks {self.which} of {self.of} are removed: {self.left} are left"

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers that the blocks had which stayed, ascending."""
        return tuple(index for index in range(self.of) if index not in self.removed)

    @property
    def ends(self) -> tuple[int, ...]:
        """For every block that stayed the last block before the next that did: it, or of a gap."""
        return (*(index - 1 for index in self.kept[1:]), self.of - 1)
