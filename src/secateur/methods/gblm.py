"""GBLM-Pruner: Wanda's score with the gradient of the full model's loss.

    score[i, j] = abs(W[i, j]) * (alpha * (T / 2048) * G[i, j] + norm2(X[:, j]) / sqrt(N))
    G           = sqrt(128 * mean over sequences n of g_n**2)       aggregate l2
                  128 * mean over sequences n of abs(g_n)           aggregate l1

    W [out, in]     weight
    X [tokens, in]  inputs of the layer over all N calibration sequences of T tokens
    g_n [out, in]   gradient of the mean-token language-model loss of sequence n, dense model

The published score is the one with N = 128 and T = 2048: the input norm is the root of the mean
over sequences, and the script multiplies gradients, which it sums over sequences, by 100, which is
`alpha`. The gradient of a mean over tokens shrinks as 1 / sqrt(T) (measured: T**-0.5) where the
norm grows as sqrt(T): the factor T / 2048 makes a sum over tokens of the mean, and a mean of the
sum over sequences, so that both sides are what one sequence adds, and neither N nor T is in their
balance. (The loss of an image is no mean over its patches: there T counts as 2048.) In the code
both sides carry a factor sqrt(N), which changes no comparison and makes `alpha = 0` Wanda bit for
bit.

Source: Das et al., arXiv 2311.04902; that it holds at any N and T is ours.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from secateur.methods.base import PAPER_LENGTH, PAPER_SEQUENCES, score
from secateur.methods.parameters import WeightParams
from secateur.statistics import Need, Order, Statistics


class GBLMParams(WeightParams):
    """Parameters of GBLM-Pruner."""

    alpha: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    """Weight of the gradient beside the input norm, for 128 sequences of 2048; 0 is Wanda."""
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
    length = statistics.length or PAPER_LENGTH
    sequences = PAPER_SEQUENCES / statistics.sequences
    of_paper = sequences if params.aggregate == "l1" else math.sqrt(sequences)
    balance = params.alpha * math.sqrt(statistics.sequences) * of_paper * (length / PAPER_LENGTH)
    return weight.abs() * (balance * statistics.full_gradient + statistics.input_norm)
