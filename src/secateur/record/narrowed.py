"""How much narrower a stage made every block, in its record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from secateur.checkpoint import BlockModel
from secateur.checkpoint.narrower import Cut, Kept, Widths
from secateur.machine.limits import MOST_WIDTH
from secateur.record.schema import RecordPart, WholeNumber
from secateur.sparsity import IN_FULL


class CutRecord(RecordPart):
    """Where the structures lie in one parameter of a block: see `checkpoint/narrower.py`."""

    parameter: str
    """Its name within the block."""
    dim: Annotated[int, Field(ge=0, le=2)]
    """The dimension along which they lie."""
    parts: tuple[Annotated[int, Field(ge=1, le=MOST_WIDTH)], ...]
    """Places that one takes in each of the parts that follow each other."""
    reads: bool
    """Whether it multiplies what they make."""

    @property
    def cut(self) -> Cut:
        """The same, to cut by."""
        return Cut(self.parameter, self.dim, self.parts, self.reads)


class LostWidth(RecordPart):
    """Which structures every block lost, and where they lay."""

    unit: Literal["ffn", "heads", "experts"]
    """What they are."""
    of: Annotated[int, Field(ge=2, le=MOST_WIDTH)]
    """How many a block had."""
    removed: tuple[str, ...]
    """The numbers of those that went, by block, such as "0-3,7"; empty where it had none."""
    cuts: tuple[CutRecord, ...]
    """The parameters that they lay in."""
    multiple: Annotated[int, Field(ge=1, le=MOST_WIDTH)] = 1
    """Of which so many were to be left, where a share was removed."""
    weights: WholeNumber
    """In the matrices, of those that went."""

    @model_validator(mode="after")
    def _some_stay(self) -> Self:
        gone = [_numbers(text, self.of) for text in self.removed]
        counts = {len(numbers) for numbers in gone if numbers}
        if len(counts) != 1 or not 0 < min(counts) < self.of:
            raise ValueError(f"{self.removed} of {self.of} cannot have been removed")
        return self

    @property
    def blocks(self) -> int | None:
        """Blocks that are told of one by one."""
        return len(self.removed)

    @property
    def lost(self) -> int:
        """How many every block lost that had any."""
        return self.of - self.left

    @property
    def left(self) -> int:
        """How many every block kept that had any."""
        return max(map(len, self.kept))

    @property
    def kept(self) -> Kept:
        """The numbers of those that stayed, by block, ascending; none where a block had none."""
        gone = (_numbers(text, self.of) for text in self.removed)
        return [
            [number for number in range(self.of) if number not in lost] if lost else []
            for lost in gone
        ]

    @property
    def which(self) -> str:
        """Those that went, in words."""
        return f"{self.lost} in every block"

    def of_model(self, model: BlockModel) -> Widths:
        """Where the structures lie in a model that has all of them."""
        return replace(model.widths(self.unit)[0], cuts=tuple(one.cut for one in self.cuts))

    def taken_from(self, model: BlockModel) -> BlockModel:
        """A model without these structures."""
        return model.narrowed(self.of_model(model), self.kept)

    def __str__(self) -> str:
        told = f"{self.lost} of {self.of} {IN_FULL[self.unit]} are removed in every block"
        return f"{told}: {self.left} are left"


def written(numbers: Iterable[int]) -> str:
    """Numbers as a person writes them, ascending: "0-3,7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _numbers(text: str, below: int) -> set[int]:
    """The numbers that are so written.

    Raises:
        ValueError: they are written otherwise, or are not below a number.
    """
    numbers: set[int] = set()
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        ends = int(first), int(last or first)
        if not 0 <= ends[0] <= ends[1] < below:
            raise ValueError(f"{run} is not among {below}")
        numbers.update(range(ends[0], ends[1] + 1))
    return numbers
