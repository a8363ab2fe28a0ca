"""Open a model for block-by-block work: streamed from disk where possible, whole where not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.checkpoint import from_pretrained  # noqa: F401 - lets transformers load what is packed
from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.naming import Naming, NotStreamableError
from secateur.checkpoint.no_model import missing_weights
from secateur.checkpoint.packed_folder import NAMED, QUANTISED, parts_of, says_packed
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import ResidentModel
from secateur.checkpoint.streamed import StreamedModel, auto_class, read_config, reason
from secateur.errors import CheckpointError, SecateurError


def open_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> BlockModel:
    """Open a model folder; `dtype=None` computes in the checkpoint's own dtype.

    It is streamed from its files where they can be read block by block, and loaded whole where not.

    Raises:
        CheckpointError, ModelError: see `Checkpoint` and `StreamedModel`.
    """
    checkpoint = Checkpoint(folder, trust_remote_code=trust_remote_code)
    config = read_config(checkpoint)
    stored = config.dtype or torch.float32
    try:
        return StreamedModel(checkpoint, device, dtype or stored)
    except NotStreamableError:
        model = load_whole(folder, stored, trust_remote_code=trust_remote_code)
        resident = ResidentModel(model, device, dtype or stored, checkpoint)
        resident.notices = checkpoint.notices
        return resident


def load_whole(
    folder: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model in memory, on the CPU: the only way to one from a folder.

    Args:
        folder: of the model, packed or plain.
        dtype: of its weights; None keeps the checkpoint's own.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Raises:
        CheckpointError: it cannot be loaded, or a weight is missing or of another shape: where
            transformers would go on with numbers drawn at random.
    """
    checkpoint = Checkpoint(folder, trust_remote_code=trust_remote_code)
    config = read_config(checkpoint)
    kind, options = auto_class(config), {}
    described = any(QUANTISED in part for part in parts_of(checkpoint.config))
    if described and not says_packed(checkpoint.config):
        config.transformers_weights = checkpoint.config.get(NAMED)
        options["config"] = config  # without a description that transformers would stumble over
    try:
        model, loaded = (kind or AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except SecateurError:
        raise  # a packed tensor that is damaged
    except Exception as fault:  # a loader's own many exceptions, on what the files hold
        for name in checkpoint.packed:
            checkpoint.load([name])  # says it better, if the fault is in one of them
        raise CheckpointError(
            f"the model cannot be loaded ({reason(fault)})", where=folder
        ) from fault
    if loaded["missing_keys"]:
        raise missing_weights(loaded["missing_keys"], loaded["unexpected_keys"], folder)
    if loaded["mismatched_keys"]:
        names = [name for name, *_ in loaded["mismatched_keys"]]
        raise CheckpointError(
            f"{len(names)} weights are of another shape, such as {min(names)!r}",
            where=folder,
            wanted="the shapes of the architecture in config.json",
        )
    _refuse_two_names(model, checkpoint)
    vars(model.config).pop(NAMED, None)  # what is saved of it has its own names
    whole: PreTrainedModel = model
    return whole


def _refuse_two_names(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` if a parameter is stored under two names: either may be loaded."""
    rules = model._weight_conversions
    with suppress(NotStreamableError):
        Naming(model, checkpoint)
    model._weight_conversions = rules  # those that it was loaded by
