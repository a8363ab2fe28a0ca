"""Memory: how much is free, in which pages it comes, giving back what an allocator keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import psutil
import torch

from secateur.machine.accelerator import free_bytes_of

GROWTH = 2**24
"""Bytes that a process may grow by before its free memory is given back: 16 MiB, some milliseconds
of touching pages again, which is little beside a block."""


def _find_malloc_trim() -> Any:
    """The C library's `malloc_trim`; None where there is none: only glibc has it."""
    if sys.platform == "win32":
        return None  # CDLL(None), this very process, is POSIX's
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


_malloc_trim = _find_malloc_trim()
_most = 0  # bytes resident once memory was given back


def free_bytes(device: torch.device) -> int:
    """The bytes that a tensor on `device` may take now."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return free_bytes_of(device)


def use_large_pages() -> None:
    """Let torch ask Linux for pages of 2 MB; to be called before any tensor is made.

    A page that is touched for the first time costs a microsecond or two, whatever its size.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back() -> None:
    """Return free main memory to the system.

    glibc keeps what was freed between what was not, and for a tensor, whose place is aligned, it
    seldom takes a hole that another tensor of the same size has left. Nothing where it is not glibc
    that allocates.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def give_back_growth() -> None:
    """The same, but only if the process is larger than it was after any such call before.

    What is given back must be taken again, at a microsecond or two for every page of it: so not
    while the process finds what it needs in what it has.
    """
    global _most
    process = psutil.Process()
    if process.memory_info().rss > _most + GROWTH:
        give_back()
        _most = max(_most, process.memory_info().rss)
