"""From scores to keep-masks: exact counts, stable ties.

    score [out, in] + pattern -> keep [out, in] bool, True where the weight stays

Counts are exact because weights are selected, not compared with a threshold (`<=` on a threshold
prunes every tie, one too many or a thousand). Among equal scores the weight that comes first in
memory is kept, so the same scores give the same mask on every machine.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from secateur.sparsity.pattern import NofM, Pattern


class Compare(StrEnum):
    """Which weights compete with each other for an unstructured budget."""

    ROW = "row"
    """Every output row keeps the same count (Wanda and what builds on it)."""
    LAYER = "layer"
    """The whole matrix shares one budget (magnitude, as the papers do it)."""


def keep_mask(score: Tensor, pattern: Pattern, compare: Compare = Compare.ROW) -> Tensor:
    """The weights to keep: those with the highest scores.

    Args:
        score: [out, in], any float dtype, finite; higher is kept.
        pattern: how many to keep. N:M groups run along `in`, which M must divide.
        compare: who competes with whom in an unstructured pattern; N:M ignores it.

    Returns:
        bool [out, in], True where the weight is kept.
    """
    if isinstance(pattern, NofM):
        groups = score.reshape(score.shape[0], -1, pattern.m)  # [out, in / m, m]
        return _keep_in_groups(groups, pattern.n).flatten(1)
    rows = score if compare is Compare.ROW else score.reshape(1, -1)
    kept = rows.shape[1] - pattern.pruned_of(rows.shape[1])
    return keep_highest(rows, kept).view_as(score)


def _keep_in_groups(groups: Tensor, n: int) -> Tensor:
    """Keep the `n` highest of each group by rank: [rows, groups, m] -> bool of the same shape.

    The rank of a weight is the number of weights of its group that beat it. Every pair of places in
    a group is compared once, for all groups together: several times faster than to sort them.
    """
    m = groups.shape[-1]
    places = groups.movedim(-1, 0).contiguous()  # [m, rows, groups]
    rank = torch.zeros(places.shape, dtype=torch.int16, device=groups.device)
    for first in range(m):
        for second in range(first + 1, m):
            wins = places[first] >= places[second]
            rank[second] += wins
            rank[first] += ~wins
    return (rank < n).movedim(0, -1)


def keep_highest(rows: Tensor, kept: int) -> Tensor:
    """Keep exactly the `kept` highest of each row; of equals, the first.

    Args:
        rows: [rows, count], any float dtype, finite.
        kept: 0 to count.

    Returns:
        bool [rows, count].
    """
    if kept == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    threshold = rows.kthvalue(rows.shape[1] - kept + 1, dim=1, keepdim=True).values  # [rows, 1]
    above = rows > threshold
    tied = rows == threshold
    places = kept - above.sum(dim=1, keepdim=True)  # [rows, 1] left for the tied
    return above | (tied & (tied.cumsum(dim=1) <= places))
