"""Matrix products whose terms may be half precision and whose sums are float32.

The product of two bfloat16 or float16 numbers is exact in float32. A GPU's tensor cores multiply
such numbers and add them up in float32, many times faster than they multiply float32 numbers; where
torch offers that, nothing is lost by it. Elsewhere the numbers are made float32 first.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes of half precision."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [rows, inner] times b [inner, columns], of any float dtypes: float32 [rows, columns]."""
    if a.dtype == b.dtype and sums_in_float32(a.device, a.dtype):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@cache
def sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of half precision on this device into a float32 one."""
    if dtype not in HALVES or device.type == "cpu":
        return False
    one = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        total = torch.mm(one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 16).all())
