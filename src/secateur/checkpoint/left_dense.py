"""Lists what a run leaves as it is, with the reason: nothing is passed over in silence.

in a block           every parameter of two dimensions or more that gets no pattern: routers,
                     convolutions, tables, what is stored in no linear layer, and the matrices
                     that the selection leaves out
outside the blocks   embeddings, the head, encoders of images or sound, summed up by name
in no model          tensors of the files that transformers makes nothing of, such as layers
                     that predict several tokens (MTP)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.matrices import find_all_matrices, find_routers, is_router
from secateur.sparsity import Selection
from secateur.sparsity.selection import REASONS_DENSE

EMBEDDING, HEAD = "embedding", "head"
"""Reasons of what every language model has outside of its blocks, and nobody prunes."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LeftDense:
    """Parameters of one kind that stay as they are for one reason.

    Attributes:
        reason: in a word or two: "router", "convolution", "excluded".
        name: within the block; of what is in no block the beginning of the name.
        blocks: the numbers of the blocks that they are in; none outside of the blocks.
        tensors: how many matrices or other parameters they are.
        weights: in all of them.
    """

    reason: str
    name: str
    blocks: tuple[int, ...]
    tensors: int
    weights: int

    @property
    def chosen(self) -> bool:
        """Whether a selection leaves it out, and it could be pruned."""
        return self.reason in REASONS_DENSE

    @property
    def usual(self) -> bool:
        """Whether every model has it, so that nobody need be told."""
        return self.reason in (EMBEDDING, HEAD)

    def __str__(self) -> str:
        inside = f" in blocks {_ranges(self.blocks)}" if self.blocks else ""
        return f"{self.reason}: {self.name}{inside} ({self.weights:,} weights)"


def find_left_dense(source: BlockModel, selection: Selection | None) -> tuple[LeftDense, ...]:
    """Everything of two dimensions or more that gets no pattern.

    Args:
        source: the model; all pieces may be closed.
        selection: which matrices get one; None for all that can be pruned.

    Returns:
        one for each reason and kind, in the order of the model.
    """
    sums: dict[tuple[str, str], tuple[set[int], int, int]] = {}
    for reason, name, block, weights in (*_inside(source, selection), *_outside(source)):
        blocks, tensors, before = sums.get((reason, name), (set(), 0, 0))
        blocks |= set() if block is None else {block}
        sums[reason, name] = blocks, tensors + 1, before + weights
    return tuple(
        LeftDense(reason, name, tuple(sorted(blocks)), tensors, weights)
        for (reason, name), (blocks, tensors, weights) in sums.items()
    )


_Entry = tuple[str, str, int | None, int]
"""Reason, name, number of the block, weights."""


def _inside(source: BlockModel, selection: Selection | None) -> Iterator[_Entry]:
    """What is left dense in the blocks."""
    blocks = source.blocks
    every = find_all_matrices(blocks)
    seen = {id(matrix.stored_in) for matrices in every for matrix in matrices}
    for index, (block, matrices) in enumerate(zip(blocks.modules, every, strict=True)):
        for matrix in matrices:
            name = blocks.prefix(index) + matrix.name
            reason = None if selection is None else selection.reason_dense(index, name)
            if reason is not None:
                yield reason, matrix.kind, index, math.prod(matrix.shape)
        routers = find_routers(block)
        for name, parameter in block.named_parameters():
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))  # what several blocks share is counted once
                owner, _, leaf = name.rpartition(".")
                chooses = owner in routers or is_router(block.get_submodule(owner))
                reason = "router" if chooses else _reason(block.get_submodule(owner), leaf)
                kind = re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight"))
                yield reason, kind, index, parameter.numel()


def _outside(source: BlockModel) -> Iterator[_Entry]:
    """What is in no block, and what is in the files but not in the model."""
    model, path = source.model, source.blocks.path
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and not name.startswith(f"{path}."):
            owner = model.get_submodule(name.rpartition(".")[0])
            reason = HEAD if owner is head else _reason(owner, "", "outside of the blocks")
            yield reason, _branch(name, path), None, parameter.numel()
    for name, shape in source.unused.items():
        if len(shape) >= 2:
            start, number, _ = re.split(r"\.(\d+)(?=\.)|$", name, maxsplit=1)
            block = None if number is None else int(number)
            name = start if number is not None else start.partition(".")[0]
            yield "no part of the model that transformers builds", name, block, math.prod(shape)


def _reason(owner: nn.Module, leaf: str, otherwise: str = "in no linear layer") -> str:
    """Why a parameter is no matrix that can be pruned, by the module that has it."""
    if isinstance(owner, nn.Embedding):
        return EMBEDDING
    if isinstance(owner, _CONVOLUTIONS):
        return "convolution"
    return "bias" if "bias" in leaf else otherwise


def _branch(name: str, path: str) -> str:
    """The beginning of a name, up to where it leaves the way to the blocks."""
    parts, way = name.split("."), path.split(".")
    shared = 0
    while shared < min(len(parts), len(way)) and parts[shared] == way[shared]:
        shared += 1
    return ".".join(parts[: shared + 1])


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
