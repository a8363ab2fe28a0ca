"""The Hessian of a layer's output error, shared by all matrices that read the same input.

    H = sum over all tokens t of x_t x_t'       [in, in], SparseGPT (arXiv 2301.00774)

For the squared error of `y = W x` every row of W has this Hessian (up to a factor that cancels in
the solve). Accumulated in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Hessian:
    """Sum of outer products of the inputs, float32 [in, in]."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.gram = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Count `inputs` [..., in] in."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).float()  # [tokens, in]
        self.gram.addmm_(flat.T, flat)
