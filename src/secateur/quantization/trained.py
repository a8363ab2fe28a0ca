"""A grid that is trained together with the weights that are rounded to it.

    value = (level - zero) * scale            level = clamp(round(w / scale + zero))
    scale = the scale at the start * exp(t)   t [out, groups] is trained, from 0

Rounding counts as the identity on the way back: a weight w gets the gradient of its value wherever
its level is not one of the two ends, and the scale gets what its levels and their roundings bring.
What is trained is w, which is a continuous number and moves over the edges between levels, and t:
so that a step of Adam changes every scale by the same share, and none changes its sign.

Source: Bengio et al., arXiv 1308.3432 (the straight-through estimator); Esser et al., arXiv
1902.08153 (the gradient of the scale); to train both block by block: Chen et al., arXiv 2407.11062.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.quantization.grid import LevelGrid, RoundedMatrix

_INSIDE = 0.45
"""How far from its value a weight begins at most, in scales: at 0.5 another level is as near. The
levels of fp8 lie at many distances: there it begins at its value."""


class TrainedGrid:
    """The grid of a matrix whose scales are trained.

    Args:
        rounded: the matrix [out, in] to begin with.

    Attributes:
        growth: float32 [out, groups], what is trained: the logarithm of every scale over that at
            the start.
    """

    def __init__(self, rounded: RoundedMatrix) -> None:
        self._rounded = rounded
        self.growth = torch.zeros_like(rounded.scale, dtype=torch.float32)

    def begin(self, weight: Tensor) -> Tensor:
        """The weights nearest to given ones that are rounded to what the matrix is at the start.

        Args:
            weight: float32 [out, in], as it was before it was rounded.

        Returns:
            float32 [out, in]; 0 where `weight` is 0 and its value is.
        """
        value = self._rounded.weight.float()
        near = (0.0 if self._rounded.scheme.floating else _INSIDE) * self._rounded.scale.float()
        near = near.repeat_interleave(weight.shape[1] // near.shape[1], dim=1)
        return weight.clamp(value - near, value + near)

    def value(self, weight: Tensor) -> Tensor:
        """What a weight is rounded to, float32 [out, in], with a gradient for it and for growth.

        Args:
            weight: float32 [out, in]; 0 where pruned, whose value is 0.
        """
        grid, scale = self._now()
        lowest, highest = grid.scheme.range
        zero = 0.0 if grid.zero is None else grid.zero.float()
        grouped = weight.view(*self.growth.shape, -1)
        level = (grouped / scale + zero).clamp(lowest, highest)
        level = level + (grid.levels(grouped).float() - level).detach()
        return ((level - zero) * scale).view_as(weight)

    @torch.no_grad()
    def rounded(self, weight: Tensor) -> RoundedMatrix:
        """The matrix of some weights [out, in], as it is stored."""
        grid, _ = self._now()
        levels = grid.levels(weight.view(*self.growth.shape, -1)).view_as(weight)
        start = self._rounded
        return RoundedMatrix(start.scheme, levels, grid.scale.squeeze(-1), start.zero)

    def _now(self) -> tuple[LevelGrid, Tensor]:
        """The grid as it is stored, and its scales [out, groups, 1] with a gradient."""
        start = self._rounded
        scale = (start.scale.float() * self.growth.exp()).unsqueeze(-1)
        stored = scale.detach().to(start.scale.dtype)
        zero = None if start.zero is None else start.zero.unsqueeze(-1)
        scale = scale + (stored.float() - scale).detach()
        return LevelGrid(start.scheme, stored, zero), scale
