"""Rounding to the dtype of the checkpoint, whose gradient is as if there were none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight`, in its own dtype, rounded to what `dtype` holds; gradients pass through."""
    rounded: Tensor = _Stored.apply(weight, dtype)  # type: ignore[no-untyped-call]
    return rounded


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.to(dtype).to(weight.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
