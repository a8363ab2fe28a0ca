"""Facts about this machine and this process, as they stand in a record."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from secateur.machine.accelerator import accelerator_name, forget_peak


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    packages: Iterable[str] = ("secateur", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine(device: torch.device) -> dict[str, str]:
    """The facts of this machine that a number may depend on."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if device.type != "cpu":
        facts["accelerator"] = accelerator_name(device)
    return facts


def repeatability(device: torch.device) -> str:
    """Says where the same recipe, with the same versions, gives the same bits again."""
    if device.type == "cpu":
        return f"on this kind of machine, with {torch.get_num_threads()} threads"
    return "not promised: on an accelerator, backward passes may add in another order each time"


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes.

    macOS tells only what is resident now, which may be less than the peak was.
    """
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose peak psutil does not tell
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # peak_wset on Windows


def reset_peak_memory(device: torch.device) -> None:
    """Let the peaks of memory be those from now on, where the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    forget_peak(device)
