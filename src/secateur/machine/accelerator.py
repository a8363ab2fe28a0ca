"""What differs between accelerators, and between having one and having none.

    cuda    NVIDIA, and AMD in PyTorch's build for ROCm
    mps     Apple: one device, whose memory is main memory; without float64
    xpu     Intel: some of them without float64

Others that `torch.accelerator` knows are used as it says. A build of PyTorch has one kind at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch
from torch import Tensor

COLLECTIVES = {"cuda": "nccl", "xpu": "xccl"}
"""Kind of accelerator -> what adds up over processes on it; others cannot."""


def kind_here() -> str | None:
    """The kind of accelerator that this machine has: "cuda", "mps", "xpu", ...; None if none."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return None if device is None else device.type


def copies_beside_work(device: torch.device) -> bool:
    """Whether it copies from and to pinned main memory while it computes, on another stream."""
    return device.type in ("cuda", "xpu")


def names_here() -> tuple[str, ...]:
    """Every accelerator of this machine by its full name: "cuda:0", "cuda:1"."""
    kind = kind_here()
    numbers = range(0 if kind is None else torch.accelerator.device_count())
    return tuple(f"{kind}:{number}" for number in numbers)


def collectives_here() -> str:
    """What torch.distributed is to add up with: on the CPU, and on the accelerator if it can."""
    kind = kind_here()
    return f"cpu:gloo,{kind}:{COLLECTIVES[kind]}" if kind in COLLECTIVES else "gloo"


def make_current(device: torch.device) -> None:
    """Let `device` be where a library computes that is not told; nothing on the CPU."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing on the CPU, which has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def accelerator_name(device: torch.device) -> str:
    """What its maker calls an accelerator."""
    if device.type == "mps":
        return torch.backends.mps.get_name()
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else "unknown"


def free_bytes_of(device: torch.device) -> int:
    """The bytes that tensors on an accelerator may take now, what its allocator keeps included."""
    if device.type == "mps":  # torch.accelerator knows its memory from PyTorch 2.13 on
        taken, kept = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        here = psutil.virtual_memory().available + kept - taken
        return min(here, torch.mps.recommended_max_memory() - taken)
    taken = torch.accelerator.memory_allocated(device)
    kept = torch.accelerator.memory_reserved(device)
    try:
        free = torch.accelerator.get_memory_info(device)[0]
    except RuntimeError:  # some of Intel's do not tell what other processes take
        total = torch.get_device_module(device).get_device_properties(device).total_memory
        return int(total) - taken
    return free + kept - taken


def peak_bytes_of(device: torch.device) -> int | None:
    """The most bytes that tensors took on an accelerator; None on the CPU and where none tells.

    Since `forget_peak`, or since the process began.
    """
    if device.type == "cpu":
        return None
    with suppress(RuntimeError):  # MPS before PyTorch 2.13
        return torch.accelerator.max_memory_allocated(device) or None
    return None


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes_of` begin anew; nothing on the CPU and where none tells."""
    if device.type != "cpu":
        with suppress(RuntimeError):
            torch.accelerator.reset_peak_memory_stats(device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, draws on the CPU and on `device` begin with `seed`; outside they are as before."""
    kind = None if device.type == "cpu" else device.type
    with torch.random.fork_rng([] if kind is None else [device], device_type=kind):
        torch.manual_seed(seed)
        yield


@contextmanager
def products_in_tf32(device: torch.device) -> Iterator[None]:
    """Inside, NVIDIA's multiply float32 matrices in TF32, of 11 bits, and add up in float32.

    For products whose rounding is made up for afterwards. Other devices multiply as outside.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def has_float64(device: torch.device) -> bool:
    """Whether tensors on `device` may be float64."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def held_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that stands for `dtype` on `device`: itself, or float32 where float64 is not."""
    return torch.float32 if dtype == torch.float64 and not has_float64(device) else dtype


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in `dtype`: where they lie, or on the CPU if that device has no such dtype."""
    held = held_dtype(dtype, values.device) == dtype
    return (values if held else values.cpu()).to(dtype)


def as_float64(values: Tensor) -> Tensor:
    """The values in float64: where they lie, or on the CPU if that device has no float64."""
    return cast(values, torch.float64)
