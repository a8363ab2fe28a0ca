"""The knee of a curve of damage: where it turns up.

    x_k = removed_k / removed_last      y_k = damage_k / damage_last      k = 0 is the dense model
    knee = the k with the largest x_k - y_k, if that is above 0

Both axes are scaled to 1, and the knee is where the curve lies furthest below the chord from its
first to its last point: up to there a structure costs less than on average over the whole curve,
beyond it more. So it depends on where the curve ends. How sure it is follows from the windows: they
are drawn anew, with replacement, and the knee is sought again (the bootstrap of Efron).

Source: Satopaa et al., "Finding a 'Kneedle' in a Haystack", ICDCS Workshops 2011, without its
smoothing, as the points are few; the orientation is that of a convex, increasing curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLINGS = 1000
"""How often the windows are drawn anew."""


def knees(removed: Sequence[int], damage: Tensor) -> Tensor:
    """The knee of each of several curves: int64 [curves], its index among the points, or -1.

    Args:
        removed: structures that are gone at every point but that of the dense model, ascending.
        damage: loss above the dense model's, float64 [points, curves].
    """
    share = torch.tensor(removed, dtype=torch.float64) / removed[-1]  # [points]
    below = share[:, None] - damage / damage[-1]  # [points, curves]
    depth, where = below.max(dim=0)
    return torch.where((depth > 0) & (damage[-1] > 0), where, -1)


def knee_of(removed: Sequence[int], damage: Tensor) -> tuple[int | None, float | None]:
    """The knee, as an index among the points, and the share of resamplings that agree.

    Either may be None: there is no knee; or there is one window, of which nothing is drawn anew.

    Args:
        removed: structures that are gone at every point but that of the dense model, ascending.
        damage: loss above the dense model's in every window, float64 [points, windows].
    """
    windows = damage.shape[1]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(windows, (RESAMPLINGS, windows), generator=generator)
    found = int(knees(removed, damage.mean(dim=1, keepdim=True)))
    resampled = knees(removed, damage[:, drawn].mean(dim=2))  # [resamplings]
    agree = float((resampled == found).double().mean()) if windows > 1 else None
    return (None if found < 0 else found), agree
