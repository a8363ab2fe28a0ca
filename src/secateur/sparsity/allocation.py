"""How one budget of zeros is shared out: a ratio for every part, whose mean is the target.

    uniform    every part the same
    owl        fewer zeros where outliers are:
                   ratio_u = price - d_u,              d the outlier shares, stretched to 2 spread
    measured   what it costs to prune a part grows as exp(a_u + b_u ratio); all of it is least where
               one weight more costs the same everywhere:
                   ratio_u = (price + ln(sizes_u / b_u) - a_u) / b_u

    price      found by halving, so that as many weights are pruned as were asked; no ratio goes
               further than `spread` from the target

A part u is whatever shares a ratio, of sizes_u weights.

Source: owl is Yin et al., arXiv 2310.05175; measured is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Allocation = Literal["uniform", "owl", "measured"]
Count = Callable[[list[float]], float]
"""Ratio of every part -> share of all weights that this really prunes, never falling."""

OWL_SPREAD = 0.08
"""Half the distance between the highest and the lowest ratio with `owl`: the paper's choice."""
MEASURED_SPREAD = 0.1
"""How far a ratio may be from the target with `measured`: as far as damage is measured."""
MOST = 0.95
"""No part is pruned further than this, unless all of them are."""
_LEAST_SLOPE = 0.5
_HALVINGS = 100
_FINER = tuple(0.01 / 2**halving for halving in range(10))


def by_outliers(shares: Tensor, target: float, count: Count) -> list[float]:
    """Ratios by outlier share: float64 [parts], each 0 to 1, of the weights that are outliers."""
    width = float(shares.max() - shares.min())
    stretched = (shares - shares.min()) * (2 * OWL_SPREAD / width if width else 0.0)
    return _at_price(lambda price: price - stretched, target, 2 * OWL_SPREAD, count)


def by_damage(
    damage: Tensor, ratios: Tensor, sizes: Tensor, target: float, count: Count
) -> list[float]:
    """Ratios by measured damage.

    Args:
        damage: float64 [parts, ratios], what pruning one part alone does at each ratio.
        ratios: float64 [ratios], two or more.
        sizes: float64 [parts], weights of each part.
        target: share of all weights that is pruned.
        count: what ratios really prune.
    """
    logs = damage.clamp_min(1e-12).log()
    centred = ratios - ratios.mean()
    slope = (logs * centred).sum(1) / centred.square().sum()  # [parts]
    slope = slope.clamp_min(_LEAST_SLOPE)  # more zeros never cost less, whatever noise says
    offset = logs.mean(1) - slope * ratios.mean()
    worth = torch.log(sizes / slope) - offset
    return _at_price(lambda price: (price + worth) / slope, target, MEASURED_SPREAD, count)


def _at_price(
    ratios_at: Callable[[float], Tensor], target: float, spread: float, count: Count
) -> list[float]:
    """The ratios at the highest price that prunes no more than every part at `target` would."""
    low, high = max(0.01, target - spread), max(target, min(MOST, target + spread))

    def within(price: float) -> list[float]:
        return [round(float(ratio), 6) for ratio in ratios_at(price).clamp(low, high)]

    parts = len(within(0.0))
    asked = count([target] * parts)
    below, above = -1e3, 1e3
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if count(within(middle)) <= asked:
            below = middle
        else:
            above = middle
    ratios = within(below)
    for part in range(parts):  # rows have whole weights: one part can often take a few more
        for finer in _FINER:
            more = [*ratios[:part], min(high, round(ratios[part] + finer, 6)), *ratios[part + 1 :]]
            ratios = more if count(more) <= asked else ratios
    return ratios
