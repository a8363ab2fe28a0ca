"""From scores to keep-masks: exact counts, stable ties.

    score [out, in] + pattern -> keep [out, in] bool, True where the weight stays

Counts are exact because weights are selected, not compared with a threshold (`<=` on a threshold
prunes every tie, one too many or a thousand). Among equal scores the weight that comes first in
memory is kept, so the same scores give the same mask on every machine.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from secateur.sparsity.pattern import Dense, NofM, Pattern

PAIRS_AT_ONCE = 2**22
"""Pairs of weights of one group that are compared together for N:M masks, a byte of memory each."""


class Competition(StrEnum):
    """Which weights compete with each other for an unstructured budget."""

    ROW = "row"
    """Every output row keeps the same count (Wanda and what builds on it)."""
    LAYER = "layer"
    """The whole matrix shares one budget (magnitude, as the papers do it)."""


def keep_mask(
    score: Tensor, pattern: Pattern, competition: Competition = Competition.ROW
) -> Tensor:
    """The weights to keep: those with the highest scores.

    Args:
        score: [out, in], any float dtype, finite; higher is kept.
        pattern: how many to keep. N:M groups run along `in`, which M must divide. Dense keeps all
            but what scores nothing, such as zeros that are there.
        competition: who competes with whom in an unstructured pattern; N:M ignores it.

    Returns:
        bool [out, in], True where the weight is kept.
    """
    if isinstance(pattern, Dense):
        return score != 0
    if isinstance(pattern, NofM):
        at_once = max(1, PAIRS_AT_ONCE // (score.shape[1] * pattern.m))
        return torch.cat([_keep_in_groups(part, pattern) for part in torch.split(score, at_once)])
    rows = score if competition is Competition.ROW else score.reshape(1, -1)
    count = rows.shape[1] - pattern.pruned_of(rows.shape[1])
    return keep_highest(rows, count).view_as(score)


def _keep_in_groups(score: Tensor, pattern: NofM) -> Tensor:
    """`keep_mask` of some rows: [rows, in] -> bool [rows, in]."""
    groups = score.reshape(len(score), -1, pattern.m).movedim(-1, 0).contiguous()
    return keep_in_places(groups, pattern.n).movedim(0, -1).flatten(1)


def keep_in_places(places: Tensor, n: int) -> Tensor:
    """Keep the `n` highest of each group, which lies along the first dimension.

    The rank of a weight is the number of weights of its group that beat it: those before it that
    are no less, and those after it that are more. All pairs are compared in one go, which is
    several times faster than to sort.

    Args:
        places: scores [m, ...], finite.
        n: 0 to m.

    Returns:
        bool [m, ...].
    """
    pairs, later = _places(len(places), places.device)
    along_first = (len(places),) + (1,) * (places.dim() - 1)
    wins = (places[:, None] >= places[None]).view(torch.int8)
    wins *= pairs.view(len(places), *along_first)  # over later ones
    rank = wins.sum(0, dtype=later.dtype) + later.view(along_first) - wins.sum(1, dtype=later.dtype)
    return rank < n


@cache
def _places(m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of m places, int8: [m, m], 1 where the second comes later; [m], how many come later."""
    dtype = torch.int8 if m <= torch.iinfo(torch.int8).max else torch.int32
    pairs = torch.ones(m, m, dtype=torch.int8, device=device).triu_(1)
    return pairs, torch.arange(m - 1, -1, -1, dtype=dtype, device=device)


def without_dropped(weight: Tensor, keep: Tensor) -> Tensor:
    """`weight`, finite, with zero where `keep` is False.

    A product: on a CPU many times faster than a choice by a mask that looks random. It leaves -0
    in place of negative weights, which the sum turns into 0.
    """
    return (weight * keep.to(weight.dtype)).add_(0.0)


def keep_highest(rows: Tensor, count: int) -> Tensor:
    """Keep exactly the `count` highest of each row; of equals, the first.

    Args:
        rows: [rows, columns], any float dtype, finite.
        count: 0 to columns.

    Returns:
        bool [rows, columns].
    """
    if count == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    threshold = rows.kthvalue(rows.shape[1] - count + 1, dim=1, keepdim=True).values  # [rows, 1]
    above = rows > threshold
    tied = rows == threshold
    places = count - above.sum(dim=1, keepdim=True)  # [rows, 1] left for the tied
    return above | (tied & (tied.cumsum(dim=1) <= places))
