"""The weights of an open block: new ones into its parameters, for good or for a while.

Pruning changes weights through these functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.blocks.new_weights import OpenBlock
from secateur.checkpoint import BlockModel, Matrix
from secateur.checkpoint.matrices import with_weights
from secateur.machine import processes
from secateur.machine.accelerator import cast
from secateur.statistics import check_finite


def write(block: OpenBlock, pruned: dict[str, Tensor], source: BlockModel) -> dict[str, Tensor]:
    """Put new weights into the block, rounded to the dtype that they will be stored in.

    Args:
        block: its parameters are written to.
        pruned: by matrix name float32 [out, in]; is empty afterwards.
        source: knows the dtype that each parameter is stored in.

    Returns:
        By parameter name in the model what is to be stored: the block's own parameters where they
        hold it to the bit, so that it is in memory once; on the CPU where the device has no
        float64 and the files do.

    Raises:
        NumericalError: a weight is not finite in that dtype; names the matrix.
    """
    changed: dict[str, Tensor] = {}
    rounded: list[Matrix] = []  # those whose parameter computes in less precision than is stored
    for matrix in block.matrices:
        dtype = source.storage_dtype(block.prefix + matrix.parameter)
        pruned[matrix.name] = stored = cast(pruned[matrix.name], dtype)
        check_finite(stored, "the pruned weights are", block.prefix + matrix.name)
        processes.copy_from(0, [stored])  # equal already, but for processors that differ
        matrix.write(stored)
        if torch.promote_types(dtype, matrix.whole.dtype) == matrix.whole.dtype:
            changed[matrix.parameter] = matrix.whole
        else:
            rounded.append(matrix)
    changed |= with_weights(rounded, pruned)
    pruned.clear()
    by_name = {block.prefix + name: value for name, value in changed.items()}
    return {name: value.to(source.storage_dtype(name)) for name, value in by_name.items()}


@torch.no_grad()
def put_back(module: nn.Module, prefix: str, changed: Mapping[str, Tensor]) -> None:
    """Put what `write` gave in an earlier process into the parameters of a block.

    Args:
        module: the block, open; its parameters are written to.
        prefix: what their names begin with in the model.
        changed: by parameter name in the model what was to be stored.
    """
    for name, value in changed.items():
        module.get_parameter(name.removeprefix(prefix)).copy_(value)


@contextmanager
def for_a_while(weights: Mapping[Matrix, Tensor]) -> Iterator[None]:
    """Inside, some matrices of an open block have other weights [out, in]."""
    before = {matrix: matrix.read().clone() for matrix in weights}
    try:
        for matrix, weight in weights.items():
            matrix.write(weight)
        yield
    finally:
        for matrix, weight in before.items():
            matrix.write(weight)
