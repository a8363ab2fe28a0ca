"""Wanda++: Wanda's score with a regional gradient (RGS), and regional optimisation (RO).

    score[i, j] = abs(W[i, j]) * (alpha * sqrt(N / 128) * G[i, j] + norm2(X[:, j]))
    G           = sqrt(mean over sequences n of (d norm2(f(X_n)) / dW)**2)

    W [out, in]     weight
    X [tokens, in]  inputs of the layer over all tokens of the N calibration sequences
    f               the decoder block that W is part of; X_n its input for sequence n
    G [out, in]     regional gradient: one block in memory, no loss, no labels

The published score is the one with N = 128, of 2048 tokens each, to which its alpha = 100 belongs.
The norm grows as sqrt(N) and G does not, so that with fewer sequences the gradient would take over;
with the factor both are root mean squares over sequences, and N is not in their balance. Nor is the
length T of a sequence, as far as both grow as sqrt(T): G does (measured: T**0.4), but in blocks
whose output norm is that of one token thousands of times as large as the others, where it grows as
T**0.85 and the balance, with short sequences, leans to the norm.

What balance suits differs by model and block: on some models every alpha is worse than none. So
every block chooses among alpha times `FACTORS` (see `blocks/judge.py`), 0 of which is Wanda.

RO refines the kept weights against the dense block's own output: see `blocks/regional.py`.

Source: Yang et al., arXiv 2503.04992; the factor and the choice are ours.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from secateur.methods.base import PAPER_SEQUENCES, Refine, score
from secateur.methods.parameters import WeightParams
from secateur.methods.wanda import WandaParams, wanda
from secateur.statistics import Need, Statistics

_PAPER = "https://arxiv.org/abs/2503.04992"

FACTORS = (0.0, 0.25, 1.0, 4.0)
"""Of alpha, that a block chooses among."""


class RegionalGradientParams(WeightParams):
    """Parameters of the regional gradient score."""

    published: ClassVar[dict[str, Any]] = {"by_block": False}

    alpha: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    """Weight of the regional gradient beside the input norm, for 128 sequences; 0 is Wanda."""
    by_block: bool = True
    """Let every block choose what suits it: alpha, a quarter of it, four times it, or 0."""

    @property
    def candidates(self) -> tuple[RegionalGradientParams, ...]:
        """alpha times each of `FACTORS`, if blocks choose."""
        if not (self.by_block and self.alpha):
            return (self,)
        return tuple(
            self.model_copy(update={"alpha": self.alpha * factor, "by_block": False})
            for factor in FACTORS
        )


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
    balance = params.alpha * math.sqrt(statistics.sequences / PAPER_SEQUENCES)
    return weight.abs() * (balance * statistics.regional_gradient + statistics.input_norm)


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
