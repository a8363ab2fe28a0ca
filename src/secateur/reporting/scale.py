"""Axes of charts: from numbers to places on paper, round numbers for ticks, room for labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FAR_OUT = 6.0
"""A value is off the scale if its distance from the reference is so many times the usual one."""


@dataclass(frozen=True)
class AxisTick:
    """A mark on an axis: where, in pixels, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear scale from [low, high] to pixels [start, end]; end may be less than start."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int) -> tuple[AxisTick, ...]:
        """Some `count` marks at round numbers within the scale."""
        step = round_step((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(
            AxisTick(self(index * step), f"{index * step:.{digits}f}")
            for index in range(first, last + 1)
        )


def round_step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def near(values: Sequence[float], reference: float) -> list[float]:
    """The values that a chart can show without squashing the rest: all but those far out.

    The usual distance from the reference is the median (the lower one of two).
    """
    distances = [abs(value - reference) for value in values]
    if not distances:
        return []
    limit = FAR_OUT * max(statistics.median_low(distances), 1e-3 * abs(reference))
    return [value for value, away in zip(values, distances, strict=True) if away <= limit]


def spread_out(ideal: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the ideal ones, in the same order, at least `gap` apart, within [low, high].

    If there is no room for all, the gaps shrink.
    """
    gap = min(gap, (high - low) / max(1, len(ideal) - 1))
    order = sorted(range(len(ideal)), key=lambda index: ideal[index])
    placed = [0.0] * len(ideal)
    floor = low
    for rank, index in enumerate(order):
        ceiling = high - gap * (len(order) - 1 - rank)
        placed[index] = min(max(ideal[index], floor), ceiling)
        floor = placed[index] + gap
    return [round(position, 2) for position in placed]
