"""Wanda++: Wanda's score with a regional gradient (RGS), and regional optimisation (RO).

    score[i, j] = abs(W[i, j]) * (alpha * G[i, j] + norm2(X[:, j]))
    G           = sqrt(mean over sequences n of (d norm2(f(X_n)) / dW)**2)

    W [out, in]     weight
    X [tokens, in]  inputs of the layer over all calibration tokens
    f               the decoder block that W is part of; X_n its input for sequence n
    G [out, in]     regional gradient: one block in memory, no loss, no labels

The norm runs over all calibration tokens. Wanda's own script keeps the mean over sequences
instead, which is sqrt(sequences) smaller; with it the same balance needs `alpha = 100 /
sqrt(sequences)`.

RO refines the kept weights against the dense block's own output: see `blocks/regional.py`.

Source: Yang et al., arXiv 2503.04992.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from secateur.methods.base import Params, Refine, score
from secateur.methods.wanda import WandaParams, wanda
from secateur.statistics import Need, Statistics

_PAPER = "https://arxiv.org/abs/2503.04992"


class RegionalGradientParams(Params):
    """Parameters of the regional gradient score."""

    alpha: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    """Weight of the regional gradient beside the input norm; 0 is Wanda."""


@score(
    "wanda++-rgs",
    paper=_PAPER,
    needs={Need.INPUT_NORM, Need.REGIONAL_GRADIENT},
    params=RegionalGradientParams,
)
def regional_gradient_score(
    weight: Tensor, statistics: Statistics, params: RegionalGradientParams
) -> Tensor:
    """Wanda with the gradient of the block's own output norm (RGS)."""
    return weight.abs() * (params.alpha * statistics.regional_gradient + statistics.input_norm)


@score(
    "wanda++-ro",
    paper=_PAPER,
    needs={Need.INPUT_NORM},
    params=WandaParams,
    refine=Refine.REGIONAL,
)
def wanda_with_regional_optimisation(
    weight: Tensor, statistics: Statistics, params: WandaParams
) -> Tensor:
    """Wanda's score, then regional optimisation of the kept weights (RO)."""
    return wanda(weight, statistics, params)


@score(
    "wanda++",
    paper=_PAPER,
    needs={Need.INPUT_NORM, Need.REGIONAL_GRADIENT},
    params=RegionalGradientParams,
    refine=Refine.REGIONAL,
)
def wandapp(weight: Tensor, statistics: Statistics, params: RegionalGradientParams) -> Tensor:
    """The regional gradient score inside regional optimisation (RGS and RO)."""
    return regional_gradient_score(weight, statistics, params)
