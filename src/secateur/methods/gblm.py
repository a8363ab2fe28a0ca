"""GBLM-Pruner: Wanda's score with the gradient of the full model's loss.

    score[i, j] = abs(W[i, j]) * (alpha * G[i, j] + norm2(X[:, j]) / sqrt(N))
    G           = sqrt(sum over sequences n of g_n**2)         aggregate l2
                  sum over sequences n of abs(g_n)             aggregate l1

    W [out, in]     weight
    X [tokens, in]  inputs of the layer over all N calibration sequences
    g_n [out, in]   gradient of the mean-token language-model loss of sequence n, dense model

The scaling is that of the paper's own script: the input norm is the root of the mean over
sequences, and the script multiplies gradients by 100, which is `alpha`. Here both sides carry a
factor sqrt(N), which changes no comparison and makes `alpha = 0` Wanda bit for bit.

Source: Das et al., arXiv 2311.04902.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from secateur.methods.base import Params, score
from secateur.statistics import Need, Order, Statistics


class GBLMParams(Params):
    """Parameters of GBLM-Pruner."""

    alpha: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    """Weight of the gradient beside the input norm; 0 is Wanda."""
    aggregate: Order = "l2"
    """How the gradients of the sequences are combined: l2 or l1."""
    gradient_only: bool = False
    """Leave the input norm out: the paper's ablation."""

    @property
    def gradient_order(self) -> Order:
        """The order that `aggregate` names."""
        return self.aggregate


@score(
    "gblm",
    paper="https://arxiv.org/abs/2311.04902",
    needs={Need.INPUT_NORM, Need.FULL_GRADIENT},
    params=GBLMParams,
)
def gblm(weight: Tensor, statistics: Statistics, params: GBLMParams) -> Tensor:
    """Wanda with the gradient of the full model's loss."""
    if params.gradient_only:
        return weight.abs() * statistics.full_gradient
    balance = params.alpha * math.sqrt(statistics.sequences)
    return weight.abs() * (balance * statistics.full_gradient + statistics.input_norm)
