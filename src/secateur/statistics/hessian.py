"""The Hessian of a layer's output error, shared by all matrices that read the same input.

    H = 2 / N * sum over sequences n of X_n' X_n            [in, in]

    X_n [tokens, in]  inputs of the layer in calibration sequence n, of N

For the squared error of `y = W x`, mean over sequences, every row of W has this Hessian.

It is kept as a running mean, sequence by sequence, in float32: the order of operations of the
published script. Its solve amplifies rounding (one near-tie that falls the other way changes the
weights to its right, and with them later masks), so that a plain sum of the same terms agrees with
the script's masks to 99.7 % where the running mean agrees to the last bit.

It is symmetric, so that only what is on and above its diagonal is computed, in strips of rows: with
eight strips 9/16 of the products, each the same to the last bit.

Source: Frantar and Alistarh, arXiv 2301.00774.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.machine import processes
from secateur.statistics.product import product, sums_in_float32

_STRIPS = 8
_NARROWEST = 128
"""Rows of a strip at least: narrower products are slow."""


class Hessian:
    """Running mean over sequences, float32 [in, in]."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        # below the strips that the diagonal cuts it stands only once `mean` was asked for
        self._mean = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._rows = max(_NARROWEST, math.ceil(in_features / _STRIPS))
        self._mirrored = True
        self.sequences = 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Count the inputs of some sequences in, [tokens, in] each; a sequence may have none."""
        self._mirrored = False
        for sequence in inputs:
            weight_before = self.sequences / (self.sequences + 1)
            self.sequences += 1
            rows, after = sequence.detach().T, 2 / self.sequences  # [in, tokens]
            if not sums_in_float32(rows.device, rows.dtype):  # the script's order of operations
                rows, after = math.sqrt(2 / self.sequences) * rows.float(), 1.0
            for start in range(0, len(rows), self._rows):
                strip = self._mean[start : start + self._rows, start:]
                strip *= weight_before
                strip.add_(product(rows[start : start + self._rows], rows[start:].T), alpha=after)

    @property
    def mean(self) -> Tensor:
        """The whole of it, float32 [in, in]; one tensor for all, which `add` writes to."""
        if not self._mirrored:
            for stop in range(self._rows, len(self._mean), self._rows):
                strip = slice(stop - self._rows, stop)
                self._mean[stop:, strip] = self._mean[strip, stop:].T
            self._mirrored = True
        return self._mean

    def join(self) -> None:
        """Count in what the other processes saw: means are joined in proportion."""
        self._mirrored = False
        (total,) = processes.totals(self.sequences)
        self._mean *= self.sequences / max(1, total)
        self.sequences = int(total)
        processes.add_up([self._mean])
