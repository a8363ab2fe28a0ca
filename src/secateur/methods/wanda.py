"""Wanda: weights and activations.

    score[i, j] = abs(W[i, j]) * norm2(X[:, j])         compared within each output row

    W [out, in]      weight
    X [tokens, in]   inputs of the layer over all calibration tokens

With `variant`, every row is pruned until the scores lost make up the same share of the row's
total, so that rows whose importance is concentrated lose more weights. The paper's script finds
that share by bisection until the layer's sparsity is within 0.001 of the target. Ranking every
weight by the share its row would have lost with it, and comparing across the layer, gives the
same rows the same prefixes and the count exactly.

Source: Sun et al., arXiv 2306.11695.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.base import score
from secateur.methods.parameters import WeightParams
from secateur.sparsity import Competition, NofM, Pattern
from secateur.statistics import Need, Statistics


class WandaParams(WeightParams):
    """Parameters of Wanda."""

    variant: bool = False
    """Choose each row's ratio so that every row loses the same share of its total score."""

    @property
    def chosen_competition(self) -> Competition:
        """The variant compares shares across the layer; that is what sets each row's ratio."""
        return Competition.LAYER if self.variant else self.competition

    def objection(self, pattern: Pattern) -> str | None:
        """The variant has nothing to choose when every group of M keeps N."""
        if self.variant and isinstance(pattern, NofM):
            return (
                f"variant=true chooses a ratio per row, which pattern {pattern} fixes: leave it"
                " out, or give a ratio such as 50%"
            )
        return None


@score(
    "wanda",
    paper="https://arxiv.org/abs/2306.11695",
    needs={Need.INPUT_NORM},
    params=WandaParams,
)
def wanda(weight: Tensor, statistics: Statistics, params: WandaParams) -> Tensor:
    """Absolute weight times the norm of its input."""
    importance = weight.abs() * statistics.input_norm  # [out, in]
    return share_of_row(importance) if params.variant else importance


def share_of_row(importance: Tensor) -> Tensor:
    """The share of its row's total that is lost once this weight and all lesser ones are pruned.

    Args:
        importance: [out, in], not negative.

    Returns:
        [out, in], 0 to 1, increasing with importance within each row.
    """
    ascending, order = importance.sort(dim=1, stable=True)
    total = importance.sum(dim=1, keepdim=True).clamp_min(torch.finfo(importance.dtype).tiny)
    return torch.empty_like(importance).scatter_(1, order, ascending.cumsum(dim=1) / total)
