"""Open a model for block-by-block work: streamed from disk where possible, whole where not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.checkpoint import from_pretrained  # noqa: F401 - lets transformers load what is packed
from secateur.checkpoint.naming import NotStreamableError
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import ResidentModel
from secateur.checkpoint.streamed import StreamedModel, auto_class, read_config, reason
from secateur.checkpoint.structure import Blocks
from secateur.errors import CheckpointError, SecateurError


class BlockModel(Protocol):
    """A model whose blocks are opened one at a time; what `blocks/` and `evaluate/` work on."""

    @property
    def model(self) -> PreTrainedModel:
        """The model; only what is open may be computed with."""

    @property
    def blocks(self) -> Blocks:
        """Its decoder blocks."""

    @property
    def device(self) -> torch.device:
        """Where open pieces are."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of open pieces."""

    def open_block(self, index: int) -> AbstractContextManager[nn.Module]:
        """One decoder block, ready to compute with; what is written into it may be let go."""

    def open_surroundings(self) -> AbstractContextManager[PreTrainedModel]:
        """Everything but the blocks, ready to compute with."""

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype in which a parameter is kept when its piece is closed."""


def open_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> StreamedModel | ResidentModel:
    """Open a model folder; `dtype=None` computes in the checkpoint's own dtype.

    A `ResidentModel` comes back where the files cannot be read block by block and the model had to
    be loaded whole.

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
        return ResidentModel(model, device, dtype or stored)


def load_whole(
    folder: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model in memory, on the CPU; `dtype=None` keeps the checkpoint's own.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    checkpoint = Checkpoint(folder, trust_remote_code=trust_remote_code)
    kind = auto_class(read_config(checkpoint))
    try:
        model, loaded = (kind or AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SecateurError:
        raise  # a packed tensor that is damaged
    except Exception as fault:  # a loader's own many exceptions, on what the files hold
        for name in checkpoint.packed:
            checkpoint.load([name])  # says it better, if the fault is in one of them
        raise CheckpointError(
            f"the model cannot be loaded ({reason(fault)})", where=folder
        ) from fault
    if missing := sorted(loaded["missing_keys"]):
        raise CheckpointError(
            f"{len(missing)} weights are missing, such as {missing[0]!r}",
            where=folder,
            wanted="every weight of the architecture in config.json",
        )
    whole: PreTrainedModel = model
    return whole
