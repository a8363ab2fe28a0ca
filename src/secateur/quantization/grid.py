"""The values that the weights of a group may have, and the nearest of them to each weight.

    value = (level - zero) * scale

    symmetric   scale = max|w| / (2**(bits - 1) - 1/2),  zero = 0
    asymmetric  scale = (high - low) / (2**bits - 1),    zero = round(lowest - low / scale)
                low = min(w, 0), high = max(w, 0); zero is a level, so that 0 is a value to the bit
    fp8         scale = max|w| / 448,  zero = 0; levels are float8_e4m3fn

Where it is known what an error counts for, whole numbers get the best of the grids that reach a
share of that far, from `REACHES`: the one of least squared error times that importance. A
shorter reach cuts off the largest weights and is finer for all others; one that is a
little longer gives the largest weight of a symmetric group a level of its own, where that
weight is positive, for there is half a step less above zero than below. What is
finer in float8 does not depend on the reach.

A scale is rounded to the dtype of the checkpoint before anything is divided by it, and a value is
computed in that dtype, as the compressed-tensors library computes it: what the next block sees is
what the file gives. A group of zeros has the scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from secateur.quantization.scheme import Scheme

REACHES = tuple(share / 100 for share in range(108, 58, -2))
"""How far a grid of whole numbers may reach, as shares of how far the weights do."""


@dataclass(frozen=True)
class LevelGrid:
    """The grids of some groups.

    Attributes:
        scheme: what the levels are.
        scale: of each group, in the dtype of the checkpoint; 1 along the dimension of the weights.
        zero: int8, the level of the value 0, shaped like `scale`; None if that is level 0.
    """

    scheme: Scheme
    scale: Tensor
    zero: Tensor | None

    @classmethod
    def of(
        cls,
        weights: Tensor,
        scheme: Scheme,
        dtype: torch.dtype,
        dim: int = -1,
        *,
        importance: Tensor | None = None,
    ) -> LevelGrid:
        """The grids of least squared error, of those that reach one of `REACHES`.

        Args:
            weights: float32; groups lie along `dim`. A pruned weight is 0, in every grid.
            scheme: what the levels are.
            dtype: of the scales.
            dim: along which a group's weights lie.
            importance: float32, what a weight's squared error counts for, shaped so that it
                multiplies `weights`; None: the grids reach as far as the weights.
        """
        low = weights.amin(dim, keepdim=True).clamp_max(0)
        high = weights.amax(dim, keepdim=True).clamp_min(0)
        if scheme.floating or importance is None:
            return cls._between(low, high, scheme, dtype)
        best, least = torch.ones_like(low), torch.full_like(low, torch.inf)
        for share in REACHES:
            grid = cls._between(low * share, high * share, scheme, dtype)
            error = (grid.values(grid.levels(weights)).float() - weights).square_()
            lost = error.mul_(importance).sum(dim, keepdim=True)
            best = torch.where(lost < least, share, best)
            least = torch.minimum(lost, least)
        return cls._between(low * best, high * best, scheme, dtype)

    @classmethod
    def _between(cls, low: Tensor, high: Tensor, scheme: Scheme, dtype: torch.dtype) -> LevelGrid:
        """The grids from the one value to the other; neither is on the other side of 0."""
        lowest, highest = scheme.range
        if scheme.floating:
            reach = torch.maximum(-low, high) / highest
        elif scheme.symmetric:
            reach = torch.maximum(-low, high) / ((highest - lowest) / 2)
        else:
            reach = (high - low) / (highest - lowest)
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # that is not 0
        scale = reach.clamp_min(smallest).to(dtype)
        scale = torch.where(reach > 0, scale, torch.ones_like(scale))
        zero = None
        if not scheme.symmetric:
            zero = (lowest - low / scale.float()).round().clamp(lowest, highest).to(torch.int8)
        return cls(scheme, scale, zero)

    def group(self, number: int) -> LevelGrid:
        """The grid of one of them, if they lie along the first dimension."""
        zero = None if self.zero is None else self.zero[number]
        return LevelGrid(self.scheme, self.scale[number], zero)

    def levels(self, weights: Tensor) -> Tensor:
        """The level of the value nearest to each weight; of a weight that is 0 that of value 0."""
        lowest, highest = self.scheme.range
        ratio = weights / self.scale.float()
        if self.zero is not None:
            ratio = ratio + self.zero
        if not self.scheme.floating:
            ratio = ratio.round()
        return ratio.clamp(lowest, highest).to(self.scheme.dtype)

    def values(self, levels: Tensor) -> Tensor:
        """The values of some levels, in the dtype of the scales."""
        numbers = levels.to(self.scale.dtype)
        if self.zero is not None:
            numbers = numbers - self.zero.to(self.scale.dtype)
        return numbers * self.scale

    @property
    def zero_level(self) -> Tensor:
        """The level of the value 0, shaped like `scale`."""
        if self.zero is not None:
            return self.zero
        return torch.zeros_like(self.scale, dtype=self.scheme.dtype)


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix W [out, in] as it is stored.

    Attributes:
        scheme: what the levels are.
        levels: int8 or float8_e4m3fn [out, in].
        scale: [out, groups], in the dtype of the checkpoint.
        zero: int8 [out, groups]; None if the grid is symmetric.

    Of several, `stacked`, each has the number of them in front.
    """

    scheme: Scheme
    levels: Tensor
    scale: Tensor
    zero: Tensor | None

    @property
    def weight(self) -> Tensor:
        """W [out, in] in the dtype of the scales."""
        groups = self.scale.shape[1]
        grid = LevelGrid(
            self.scheme,
            self.scale.unsqueeze(-1),
            None if self.zero is None else self.zero.unsqueeze(-1),
        )
        rows, columns = self.levels.shape
        grouped = self.levels.view(rows, groups, columns // groups)
        return grid.values(grouped).view(rows, columns)


def stacked(matrices: Sequence[RoundedMatrix]) -> RoundedMatrix:
    """Matrices of one shape and scheme as one, in the order given."""
    zeros = [matrix.zero for matrix in matrices if matrix.zero is not None]
    return RoundedMatrix(
        matrices[0].scheme,
        torch.stack([matrix.levels for matrix in matrices]),
        torch.stack([matrix.scale for matrix in matrices]),
        torch.stack(zeros) if zeros else None,
    )


def scale_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype of the scales of weights that were stored in a dtype: that, or float32."""
    return stored if stored in (torch.bfloat16, torch.float16) else torch.float32


def stored_bytes(scheme: Scheme, rows: int, columns: int, scales: torch.dtype) -> int:
    """The bytes that a matrix takes in a file.

    Args:
        scheme: how it is stored.
        rows, columns: of the matrix.
        scales: the dtype of its scales.
    """
    groups = columns // (scheme.group or columns)
    amount = rows * groups * scales.itemsize
    if scheme.floating:
        return amount + rows * columns
    amount += rows * ceil(columns * scheme.bits / 32) * 4 + 2 * torch.int64.itemsize
    if not scheme.symmetric:
        amount += ceil(rows * scheme.bits / 32) * 4 * groups
    return amount


def round_to_nearest(weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> RoundedMatrix:
    """Round every weight to the nearest value of its group's grid.

    Args:
        weight: float32 [out, in]; the groups fill its rows.
        scheme: what it is rounded to.
        dtype: of the scales.
    """
    rows, columns = weight.shape
    grouped = weight.reshape(rows, -1, scheme.group or columns)  # [out, groups, group]
    grid = LevelGrid.of(grouped, scheme, dtype)
    return RoundedMatrix(
        scheme,
        grid.levels(grouped).view(rows, columns),
        grid.scale.squeeze(-1),
        None if grid.zero is None else grid.zero.squeeze(-1),
    )
