"""Magnitude pruning: the oldest baseline, which looks at the weights alone.

    score = abs(W)

Weights compete across the whole layer by default, as in the papers' tables; `competition=row` makes
every output row keep the same count.

Source: Han et al., arXiv 1506.02626.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.base import score
from secateur.methods.parameters import WeightParams
from secateur.sparsity import Competition
from secateur.statistics import Statistics


class MagnitudeParams(WeightParams):
    """Parameters of magnitude pruning."""

    competition: Competition = Competition.LAYER
    """Weights compete across the whole layer, or within their output row (unstructured only)."""


@score("magnitude", paper="https://arxiv.org/abs/1506.02626", params=MagnitudeParams)
def magnitude(weight: Tensor, statistics: Statistics, params: MagnitudeParams) -> Tensor:
    """Absolute value of the weight; needs no data."""
    return weight.abs()
