"""Which zeros of a model, such as those of 2:4, do not outlast the removal of its structures.

A channel that goes takes one column out of the matrix that reads it, and every group behind it is
another one; a head whose size is a multiple of a group takes whole groups. A method that lets the
rest make up for what goes fills zeros. Whole blocks and experts take no group apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.checkpoint import BlockModel, find_matrices
from secateur.recipe import Plan
from secateur.sparsity import IN_FULL, NofM

SIZES = (4, 8, 16)
"""Sizes of groups that are looked for, the smallest first."""


def zeros_lost(source: BlockModel, plan: Plan) -> tuple[str, ...]:
    """A line on groups of zeros that a run destroys; none if it destroys none.

    The first block that has the structures is opened and looked at.

    Args:
        source: the model that a run begins with.
        plan: of the run.
    """
    structures = plan.structures
    if structures is None or structures.unit not in ("ffn", "heads"):
        return ()
    widths = source.widths(structures.unit)[0]
    index, cuts = next(
        (index, cuts)
        for index, block in enumerate(source.blocks.modules)
        if (cuts := widths.within(block))
    )
    reading = {cut.parameter for cut in cuts if cut.reads}
    lost: dict[str, list[str]] = {}
    with source.open_block(index) as module:
        for matrix in find_matrices(module):
            pattern = groups_of(matrix.read()) if matrix.parameter in reading else None
            if pattern is None:
                continue
            if plan.corrects or matrix.shape[1] // widths.total % pattern.m:
                lost.setdefault(str(pattern), []).append(matrix.kind)
    how = "zeros are filled" if plan.corrects else "columns go out of the groups"
    return tuple(
        f"the model's {', '.join(names)} is {pattern}, and will not be any more: {how} as"
        f" {IN_FULL[structures.unit]} go. Structures go first, and then {pattern}"
        for pattern, names in lost.items()
    )


@torch.no_grad()
def groups_of(weight: Tensor) -> NofM | None:
    """The pattern N:M that a matrix has, by its zeros; None if it has none.

    Args:
        weight: [out, in].
    """
    for size in SIZES:
        if weight.shape[1] % size == 0:
            kept = int((weight != 0).reshape(len(weight), -1, size).sum(dim=-1).max())
            if 0 < kept < size:
                return NofM(kept, size)
    return None
