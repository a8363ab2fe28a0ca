"""What of a model is trained: layers that get an adapter, or parameters themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.checkpoint import find_blocks, find_matrices
from secateur.errors import RecipeError, closest
from secateur.recipe.recover_stage import ALL_KINDS, RecoverStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """Names of the modules within the blocks that get an adapter, or whose matrices are trained.

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


def find_trained(model: PreTrainedModel, matrices: Collection[str] | None) -> list[str]:
    """Names of the parameters of the blocks that are trained.

    Args:
        model: its blocks are looked through.
        matrices: names of the modules whose matrices are trained beside norms and biases; None:
            every matrix.

    Raises:
        RecipeError: there is nothing to train.
    """
    blocks = find_blocks(model)
    names = [
        blocks.prefix(index) + name
        for index, block in enumerate(blocks.modules)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 1
        or matrices is None
        or (blocks.prefix(index) + name).rpartition(".")[0] in matrices
    ]
    if not names:
        raise RecipeError("the blocks have neither norms nor biases", where="--train norms")
    return names


def find_parameters(model: PreTrainedModel, stage: RecoverStage) -> list[str]:
    """Names of the parameters that a training of weights, or of norms, trains.

    Args:
        model: its blocks are looked through.
        stage: what is trained; not adapters.

    Raises:
        RecipeError: a kind of layer is in no block, or there is nothing to train.
    """
    if stage.train == "norms":
        return find_trained(model, ())
    every = stage.targets == ALL_KINDS
    return find_trained(model, None if every else find_targets(model, stage.targets))


def check_targets(model: PreTrainedModel, stage: RecoverStage) -> None:
    """Raise a RecipeError unless there is in the model what is to be trained."""
    if stage.train == "adapters":
        find_targets(model, stage.targets)
    else:
        find_parameters(model, stage)


def _is_kind(layer: str, asked: str) -> bool:
    return layer == asked or layer.endswith(f".{asked}")
