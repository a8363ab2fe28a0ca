"""The matrices of a block while the regional optimiser moves them, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.quantization import RoundedMatrix, TrainedGrid


@dataclass(frozen=True)
class Masked:
    """A matrix whose weights are chosen.

    Attributes:
        keep: bool [out, in], the weights that stay.
        weight: float32 [out, in], what they are.
        rounded: what they are rounded to; None if they are not.
    """

    keep: Tensor
    weight: Tensor
    rounded: RoundedMatrix | None = None


@dataclass(frozen=True)
class Refined:
    """The matrices of a block after the regional optimiser.

    Attributes:
        weights: by matrix name float32 [out, in], zero where pruned.
        judged: the error on the judging sequences, of the weights at the start and of those that
            stay; None without judges.
        rounded: by matrix name how those are stored that are rounded.
    """

    weights: dict[str, Tensor]
    judged: tuple[float, float] | None
    rounded: Mapping[str, RoundedMatrix] = field(default_factory=dict)


class InTraining:
    """The matrices of a block while they are refined.

    Args:
        start: by matrix name, what they begin as; is empty afterwards.

    Attributes:
        keep: by matrix name bool [out, in].
        weights: by matrix name float32 [out, in], 0 where pruned.
        grids: of those that are rounded.
    """

    def __init__(self, start: dict[str, Masked]) -> None:
        self.keep = {name: masked.keep for name, masked in start.items()}
        self.weights: dict[str, Tensor] = {}
        self.grids: dict[str, TrainedGrid] = {}
        for name in self.keep:
            masked = start.pop(name)
            self.weights[name] = masked.weight.detach().clone()
            if masked.rounded is not None:
                self.grids[name] = TrainedGrid(masked.rounded)
                self.weights[name] = self.grids[name].begin(self.weights[name])
        self.mask()

    def seen(self) -> dict[str, Tensor]:
        """What the block computes with, by matrix name float32 [out, in]."""
        return {
            name: self.grids[name].value(weight) if name in self.grids else weight
            for name, weight in self.weights.items()
        }

    @torch.no_grad()
    def mask(self) -> None:
        """Set pruned weights to 0."""
        for name, weight in self.weights.items():
            # many times faster than a fill, see sparsity/mask
            weight.mul_(self.keep[name].to(weight.dtype))

    def leaves(self) -> list[Tensor]:
        """What a gradient is asked for."""
        growths = (grid.growth for grid in self.grids.values())
        return [tensor for tensor in (*self.weights.values(), *growths) if tensor.requires_grad]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A copy of the weights, and of what the grids have learnt, by matrix name."""
        return (
            {name: weight.detach().clone() for name, weight in self.weights.items()},
            {name: grid.growth.detach().clone() for name, grid in self.grids.items()},
        )

    def put_back(self, state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Go on with what `state` gave."""
        self.weights, growths = state
        for name, growth in growths.items():
            self.grids[name].growth = growth

    @torch.no_grad()
    def stored(self, judged: tuple[float, float] | None) -> Refined:
        """The matrices as they are now."""
        rounded = {name: grid.rounded(self.weights[name]) for name, grid in self.grids.items()}
        weights = {
            name: (rounded[name].weight.float() if name in rounded else weight.detach()) + 0.0
            for name, weight in self.weights.items()  # no -0
        }
        return Refined(weights, judged, rounded)
