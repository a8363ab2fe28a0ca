"""Merges adapters into one sparse model, as it will be stored, and proves its zeros."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint import BlockModel, find_all_matrices
from secateur.errors import CheckFailedError, NumericalError
from secateur.machine.waiting import doing
from secateur.recovery.adapter import masked_layers
from secateur.sparsity import Selection, audit


@doing("merging the adapters")
@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every adapted weight by its parameter name, in the dtype that it is stored in.

    Raises:
        NumericalError: a weight is not finite.
    """
    weights: dict[str, Tensor] = {}
    for name, layer in masked_layers(model):
        weight = layer.used_weight().to(layer.stored_dtype).cpu()
        if not bool(torch.isfinite(weight).all()):
            raise NumericalError("a merged weight is not finite", where=name)
        weights[f"{name}.weight"] = weight
    return weights


@doing("counting zeros")
def count_zeros(
    source: BlockModel, selection: Selection | None, merged: Mapping[str, Tensor]
) -> int:
    """The zeros of a model's prunable matrices, after the merged weights have gone in.

    Args:
        source: the sparse model on disk.
        selection: what matrices must have; None asks for nothing but the zeros themselves.
        merged: new weights by parameter name, as stored; empty looks at the model as it is.

    Raises:
        CheckFailedError: a zero of the sparse model is none any more, or the pattern does not hold.
    """
    zeros = 0
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        with source.open_block(index):
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                before = matrix.read()
                after = before
                if name in merged:
                    stored = merged[name].to(before.device)
                    after = matrix.as_stored(stored)  # its transposition is its own inverse
                    broken = int(((before == 0) & (after != 0)).sum())
                    if broken:
                        raise CheckFailedError(
                            f"the merge broke {broken} zeros", where=name, wanted="every zero kept"
                        )
                pattern = None if selection is None else selection.pattern_of(index, name)
                counted = audit(after, pattern)
                if not counted.holds:
                    raise CheckFailedError(f"the matrix is not {pattern}", where=name)
                zeros += counted.zeros
    return zeros
