"""Proves that the weights of a recovered model have every zero that the sparse model has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.checkpoint import BlockModel, find_all_matrices
from secateur.errors import CheckFailedError
from secateur.machine.waiting import doing
from secateur.sparsity import Selection, audit


@doing("counting zeros")
def count_zeros(
    source: BlockModel, selection: Selection | None, trained: Mapping[str, Tensor]
) -> int:
    """The zeros of a model's prunable matrices, after the trained weights have gone in.

    Args:
        source: the sparse model on disk.
        selection: what matrices must have; None asks for nothing but the zeros themselves.
        trained: new weights by parameter name, as stored; empty looks at the model as it is.

    Raises:
        CheckFailedError: a zero of the sparse model is none any more, or the pattern does not hold.
    """
    zeros = 0
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        with source.open_block(index):
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                before = after = matrix.read()
                parameter = source.blocks.prefix(index) + matrix.parameter
                if parameter in trained:
                    after = matrix.within(trained[parameter].to(before.device))
                    broken = int(((before == 0) & (after != 0)).sum())
                    if broken:
                        raise CheckFailedError(
                            f"training broke {broken} zeros", where=name, wanted="every zero kept"
                        )
                pattern = None if selection is None else selection.pattern_of(index, name)
                counted = audit(after, pattern)
                if not counted.holds:
                    raise CheckFailedError(f"the matrix is not {pattern}", where=name)
                zeros += counted.zeros
    return zeros
