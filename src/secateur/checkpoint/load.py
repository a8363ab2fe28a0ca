"""The door `secateur.load`: a whole model in memory from its folder, packed or plain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from secateur.checkpoint.locate import locate
from secateur.checkpoint.open import load_whole
from secateur.machine.device import choose_device
from secateur.machine.paths import Location, pinned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    model: Location,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in memory from its folder, packed or plain.

    What is packed is unpacked tensor by tensor, and the dense model is never written. While that
    lasts, the packed files are mapped: their pages count as resident, and the system may take them
    back. `AutoModelForCausalLM.from_pretrained` does the same.

    Args:
        model: folder or hub name.
        dtype: of the weights; None keeps that of the checkpoint.
        device: "cpu", "cuda", "mps", "xpu", ...; "auto" takes what there is.
        revision: branch, tag or commit of a model on the hub; None is its main branch.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Returns:
        the model, on its device.

    Raises:
        SecateurError: there is no such model, or its files are damaged.

    >>> secateur.load("pruned").dtype
    torch.bfloat16
    """
    folder = locate(pinned(model, revision), trust_remote_code=trust_remote_code)
    return load_whole(folder, dtype, trust_remote_code=trust_remote_code).to(choose_device(device))
