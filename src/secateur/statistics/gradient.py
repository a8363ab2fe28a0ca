"""Aggregated gradients of a loss with respect to a weight, one term per calibration sequence.

l2 sum    sqrt(sum over n of g_n**2)        GBLM-Pruner, arXiv 2311.04902
l2 mean   sqrt(mean over n of g_n**2)       Wanda++ (RGS), arXiv 2503.04992
l1 sum    sum over n of abs(g_n)            GBLM-Pruner's other aggregate

g_n [out, in]  gradient of the loss of sequence n; accumulated in float32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from secateur.machine import processes
from secateur.statistics.product import product

Order = Literal["l1", "l2"]


class GradientNorm:
    """Sum over sequences of |g| (l1) or g**2 (l2), float32 [out, in]."""

    def __init__(
        self, shape: tuple[int, int], order: Order = "l2", device: torch.device | str = "cpu"
    ) -> None:
        self.order: Order = order
        self.sequences = 0
        self.sum = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, inputs: Sequence[Tensor], output_gradients: Sequence[Tensor]) -> None:
        """Count in the gradients of a linear map, one sequence of the batch at a time.

        For `y = x @ W.T` the gradient of sequence n is `g_n.T @ x_n`: the sequences of a batch do
        not mix, so that one backward pass over the batch gives the gradient of each.

        Args:
            inputs: x of each sequence, [tokens, in]; an expert may see no token of it.
            output_gradients: d loss_n / d y of each, [tokens, out].
        """
        for x, g in zip(inputs, output_gradients, strict=True):
            self.sequences += 1
            if len(x) == 0:
                continue
            gradient = product(g.detach().T, x.detach())  # [out, in]
            if self.order == "l2":
                self.sum.addcmul_(gradient, gradient)
            else:
                self.sum += gradient.abs()

    def join(self) -> None:
        """Count in what the other processes saw."""
        self.sequences = int(processes.totals(self.sequences)[0])
        processes.add_up([self.sum])

    @property
    def total(self) -> Tensor:
        """The aggregate over sequences, float32 [out, in]: the root of the sum for l2."""
        return self.sum.sqrt() if self.order == "l2" else self.sum.clone()

    @property
    def mean(self) -> Tensor:
        """The aggregate per sequence, float32 [out, in]: root mean square for l2."""
        mean = self.sum / max(1, self.sequences)
        return mean.sqrt() if self.order == "l2" else mean
