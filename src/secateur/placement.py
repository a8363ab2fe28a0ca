"""Where a run computes, how exactly, and how much at a time."""

from __future__ import annotations

import torch

from secateur import ranks
from secateur.checkpoint import BlockModel
from secateur.errors import RecipeError
from secateur.memory import free_bytes

TOKENS_PER_BATCH = 2048
"""On a CPU, where more at once is no faster and takes more memory."""
TOKENS_PER_BATCH_ELSEWHERE = 16384
"""On an accelerator, which larger matrix products keep busy."""
SHARE = 4
"""A batch may take this part of the free memory, one in so many."""
HELD = 4
"""How often a block holds what its matrices read and write, gradients and all between included."""


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator if there is one.

    Of several processes on a host each takes an accelerator of its own.

    Raises:
        RecipeError: it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.count() > 1:
        name = f"cuda:{ranks.local()}"
    elif ranks.count() > 1 and name.startswith("cuda:"):
        raise RecipeError(
            f"device {name} for each of {ranks.count()} processes", wanted="auto, cuda or cpu"
        )
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    present = device is not None and (
        device.type == "cpu" or (device.type == "cuda" and str(_numbered(device)) in there)
    )
    if device is None or not present:
        raise RecipeError(f"device {name!r} is not there", wanted=" or ".join(there))
    if device.type == "cuda" and ranks.count() > 1:
        torch.cuda.set_device(device)  # where NCCL, and a kernel that is not told, will be
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The computing precision; None is the checkpoint's own.

    "auto" computes in float32 on a CPU, where half precision is slow and rounds the hidden states,
    and in the checkpoint's own dtype on an accelerator.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def batch_size(asked: int | None, length: int, source: BlockModel) -> int:
    """Sequences per batch: what was asked for, or as many as keep the device busy.

    Fewer where that would take more than a part of the free memory: half, a quarter and so on, so
    that the number, on which the last bits depend, is the same as long as memory is not short.

    Args:
        asked: by the user.
        length: tokens of a sequence.
        source: the model, its blocks closed.
    """
    if asked:
        return asked
    tokens = TOKENS_PER_BATCH if source.device.type == "cpu" else TOKENS_PER_BATCH_ELSEWHERE
    room = free_bytes(source.device) // SHARE // _bytes_of_token(source)
    while tokens > max(room, length):
        tokens //= 2
    return max(1, tokens // length)


def _bytes_of_token(source: BlockModel) -> int:
    """About what a block holds for a token while it runs; of fused experts, as if it met one."""
    features = max(
        sum(sum(p.shape[-2:]) for p in block.parameters() if p.dim() > 1)
        for block in source.blocks.modules
    )
    return HELD * features * source.dtype.itemsize


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, device.index or 0)
