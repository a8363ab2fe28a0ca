"""Which layers of a model are trained."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.checkpoint import find_blocks, find_matrices
from secateur.errors import RecipeError, closest

ALL_KINDS = "all"
"""Value of `--targets` that stands for every kind of layer."""


def find_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """Names of the modules within the blocks that get an adapter.

    Args:
        model: its linear layers are looked through, block by block.
        targets: "all", or kinds with commas between: "q_proj,v_proj", "self_attn.q_proj".

    Raises:
        RecipeError: a kind is in no block.
    """
    blocks = find_blocks(model)
    kinds = {
        blocks.prefix(index) + matrix.kind: matrix.kind
        for index, block in enumerate(blocks.modules)
        for matrix in find_matrices(block)
        if isinstance(matrix.owner, nn.Linear | Conv1D)
    }
    if targets == ALL_KINDS:
        return list(kinds)
    asked = [kind.strip() for kind in targets.split(",")]
    for kind in asked:
        if not any(_is_kind(layer, kind) for layer in kinds.values()):
            known = {layer.rpartition(".")[2] for layer in kinds.values()}
            raise RecipeError(
                f"no block has a linear layer {kind!r}",
                where="--targets",
                wanted=closest(kind, sorted(known)),
            )
    return [name for name, layer in kinds.items() if any(_is_kind(layer, kind) for kind in asked)]


def _is_kind(layer: str, asked: str) -> bool:
    return layer == asked or layer.endswith(f".{asked}")
