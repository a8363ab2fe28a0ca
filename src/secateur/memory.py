"""Memory: how much of it is free, and giving back what an allocator keeps for later."""

from __future__ import annotations

import ctypes

import psutil
import torch

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def free_bytes(device: torch.device) -> int:
    """What a tensor on `device` may take now."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return int(psutil.virtual_memory().available)


def give_back() -> None:
    """Return free main memory to the system.

    glibc keeps what was freed between what was not, and for a tensor, whose place is aligned, it
    seldom takes a hole that another tensor of the same size has left. Nothing where it is not glibc
    that allocates.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)
