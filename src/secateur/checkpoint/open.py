"""Open a model for block-by-block work: streamed from disk where possible, whole where not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.compressed import dequantised, described
from secateur.checkpoint.configuration import auto_class, read_config
from secateur.checkpoint.naming import Naming, NotStreamableError
from secateur.checkpoint.no_model import missing_weights
from secateur.checkpoint.packed_folder import NAMED, QUANTISED, says_packed
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.skeleton import building, empty_model
from secateur.checkpoint.streamed import StreamedModel
from secateur.checkpoint.whole import WholeModel, widest_dtype
from secateur.errors import CheckpointError, SecateurError, reason
from secateur.machine.accelerator import held_dtype
from secateur.machine.waiting import doing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@doing("opening the model")
def open_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> BlockModel:
    """Open a model folder; `dtype=None` computes in the checkpoint's own dtype.

    That is float32 for a checkpoint in float64 on a device without it.
    It is streamed from its files where they can be read block by block, and loaded whole where not.

    Raises:
        CheckpointError, ModelError: see `Checkpoint` and `StreamedModel`.
    """
    checkpoint = Checkpoint(folder, trust_remote_code=trust_remote_code)
    config = read_config(checkpoint)
    computing = held_dtype(dtype or config.dtype or torch.float32, device)
    try:
        return StreamedModel(checkpoint, device, computing)
    except NotStreamableError:
        widest = widest_dtype(checkpoint, checkpoint.names)
        model = load_whole(folder, widest, trust_remote_code=trust_remote_code)
        return WholeModel(model, checkpoint, device, computing)


@doing("loading the model")
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
    empty_model(config, checkpoint, dtype or config.dtype or torch.float32)  # as large as its files
    setattr(config, NAMED, checkpoint.config.get(NAMED))
    if says_packed(checkpoint.config):
        setattr(config, QUANTISED, checkpoint.config[QUANTISED])
    elif (told := described(checkpoint.config)) is not None:
        setattr(config, QUANTISED, dequantised(told, folder))
    try:
        with building(checkpoint):
            model, loaded = (auto_class(config) or AutoModelForCausalLM).from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
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
