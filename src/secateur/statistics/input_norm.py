"""The l2 norm of every input feature over all calibration tokens (Wanda, arXiv 2306.11695).

norm2(X[:, j]) = sqrt(sum over all tokens t of X[t, j]**2)

X [tokens, in]  inputs that the layer saw, any float dtype; accumulated in float32
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.machine import processes

_ROWS = {"cpu": 128}
"""Rows that are squared together: on a CPU as many as stay in its cache."""
_MOST_ROWS = 2**14


class InputNorm:
    """Sum of squares of each input feature, float32 [in]."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.sum_of_squares = torch.zeros(in_features, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Count `inputs` [..., in] in."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])  # [tokens, in]
        for rows in torch.split(flat, _ROWS.get(inputs.device.type, _MOST_ROWS)):
            self.sum_of_squares += rows.float().square().sum(dim=0)

    def join(self) -> None:
        """Count in what the other processes saw."""
        processes.add_up([self.sum_of_squares])

    @property
    def norm(self) -> Tensor:
        """l2 norm over all tokens seen, float32 [in]."""
        return self.sum_of_squares.sqrt()
