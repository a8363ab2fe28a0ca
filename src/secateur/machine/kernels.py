"""Whether kernels written in Triton run on a device."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED = "TRITON_INTERPRET"
"""Set to 1 before Triton is imported, it runs the kernels on a CPU, for tests."""


def kernel_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a Triton kernel can take tensors there: on NVIDIA's and AMD's, or interpreted."""
    built = torch.version.cuda is not None or torch.version.hip is not None
    placed = (device.type == "cuda" and built) or os.environ.get(INTERPRETED) == "1"
    return placed and dtype in KERNEL_DTYPES and has_triton()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; a build of torch for CUDA brings it."""
    return importlib.util.find_spec("triton") is not None
