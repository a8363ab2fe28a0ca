"""Charts as plain geometry, in pixels; `charts.svg.j2` draws them. No chart needs its colours.

A panel is 328 pixels wide, what a phone has between its margins; text is never scaled. Methods are
told apart by place and by name, and by the shape of their marks where lines cross.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from secateur.reporting.comparison import Spread
from secateur.reporting.scale import Axis, AxisTick, near, round_step

PANEL = 328
LETTERS = {4.2: "ijlt.,:;|' ", 10.2: "mwMW+%@=<>~#&"}
"""Widths of narrow and of wide letters of chart text in a wide font; all others have 7.4."""
LEVELS = 10
"""Shades of a heat map."""


@dataclass(frozen=True)
class Dot:
    """A row of a dot plot: its height, its value's place, the ends of its whisker.

    `x` is None off the scale: an arrow points there.
    """

    name: str
    style: int
    y: float
    x: float | None
    low: float | None
    high: float | None
    value: str


@dataclass(frozen=True)
class DotPlot:
    """Values by name, beside a line of reference."""

    width: float
    height: float
    left: float
    right: float
    dots: tuple[Dot, ...]
    ticks: tuple[AxisTick, ...]
    reference: AxisTick | None


@dataclass(frozen=True)
class HeatMap:
    """Shades by row and column: one path for every shade."""

    width: float
    height: float
    left: float
    rows: tuple[AxisTick, ...]
    columns: tuple[AxisTick, ...]
    shades: tuple[tuple[int, str], ...]
    bottom: float


@dataclass(frozen=True)
class Bar:
    """A bar of parts, one after the other: (style, start, width)."""

    name: str
    y: float
    parts: tuple[tuple[int, float, float], ...]
    end: float
    value: str


@dataclass(frozen=True)
class BarChart:
    """Parts of a whole by name."""

    width: float
    height: float
    left: float
    right: float
    bars: tuple[Bar, ...]
    ticks: tuple[AxisTick, ...]


ROW = 24


@dataclass(frozen=True)
class RatedName:
    """What a row of a dot plot shows: its name, the number of its style, a value, and its text."""

    name: str
    style: int
    value: Spread
    text: str


def dot_plot(
    rows: Sequence[RatedName],
    reference: float | None,
    span: tuple[float, float],
    width: int = PANEL,
) -> DotPlot:
    """Values by name; what is outside the span becomes an arrow."""
    left = _room([row.name for row in rows])
    right = width - max(text_width(row.text) for row in rows) - 10
    axis = Axis(*span, left + 8, right - 8)
    dots = []
    for number, row in enumerate(rows):
        mean, spread = row.value.mean, row.value.spread
        x = axis(mean) if span[0] <= mean <= span[1] else None
        low = high = None
        if x is not None and spread:
            low = axis(max(span[0], mean - spread))
            high = axis(min(span[1], mean + spread))
        dots.append(Dot(clipped(row.name), row.style, 36 + ROW * number, x, low, high, row.text))
    height = 36 + ROW * len(rows) + 14
    line = None if reference is None else AxisTick(axis(reference), f"dense {reference:.2f}")
    return DotPlot(width, height, left, right, tuple(dots), axis.ticks(3), line)


def span_of(values: Sequence[Spread], reference: float | None) -> tuple[float, float]:
    """The scale that shows the values and the reference, without those far out."""
    known = [value for value in values if math.isfinite(value.mean)]
    start = min(value.mean for value in known) if reference is None else reference
    within = set(near([value.mean for value in known], start))
    ends = [start]
    for value in known:
        if value.mean in within:
            ends += [value.mean - (value.spread or 0), value.mean + (value.spread or 0)]
    room = 0.04 * (max(ends) - min(ends)) or 0.05 * abs(start) or 1.0
    return min(ends) - room, max(ends) + room


def heat_map(cells: Mapping[tuple[str, int], float], top: float, width: int = PANEL) -> HeatMap:
    """Shades of values from zero to `top` by (row, column)."""
    rows = {row: number for number, row in enumerate(dict.fromkeys(row for row, _ in cells))}
    columns = {column: number for number, column in enumerate(sorted({c for _, c in cells}))}
    left = _room(list(rows), 18)
    wide = min(34.0, (width - left) / len(columns))
    tall = 15
    paths: dict[int, list[str]] = {}
    gap = 1 if wide > 4 else 0
    for (row, column), value in cells.items():
        level = min(LEVELS - 1, int(LEVELS * value / top)) if top > 0 else 0
        x, y = left + wide * columns[column], tall * rows[row]
        path = f"M{x:.1f} {y}h{wide - gap:.1f}v{tall - 1}h-{wide - gap:.1f}z"
        paths.setdefault(level, []).append(path)
    step = round(round_step(max(1.0, 22 / wide)))
    bottom = tall * len(rows)
    return HeatMap(
        width=round(left + wide * len(columns) + 2, 1),
        height=bottom + 16,
        left=left,
        rows=tuple(AxisTick(tall * i + 11, clipped(row, 18)) for i, row in enumerate(rows)),
        columns=tuple(
            AxisTick(left + wide * (i + 0.5), str(column))
            for i, column in enumerate(columns)
            if i % step == 0
        ),
        shades=tuple((level, "".join(path)) for level, path in sorted(paths.items())),
        bottom=bottom,
    )


def bar_chart(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    texts: Sequence[str],
    top: float,
    width: int = PANEL,
) -> BarChart:
    """Parts of every name's whole, from zero to `top`."""
    left = _room(names)
    axis = Axis(0, top or 1.0, left, width - max(map(text_width, texts)) - 14)
    bars = []
    for number, (name, parts, text) in enumerate(zip(names, values, texts, strict=True)):
        starts = [0.0, *accumulate(parts)]
        drawn = tuple(
            (style, axis(begin), round(axis(end) - axis(begin), 2))
            for style, (begin, end) in enumerate(pairwise(starts))
            if end > begin
        )
        bars.append(Bar(clipped(name), ROW * number + 4, drawn, axis(starts[-1]), text))
    return BarChart(width, ROW * len(names) + 22, left, axis.end, tuple(bars), axis.ticks(3))


def clipped(name: str, longest: int = 20) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _room(names: Sequence[str], longest: int = 20) -> float:
    """Pixels for the longest of the names at the left of a chart."""
    return round(8 + max(text_width(clipped(name, longest)) for name in names), 1)


def text_width(text: str) -> float:
    """The pixels that a text takes in a chart, on the safe side."""
    return sum(
        next((width for width, few in LETTERS.items() if letter in few), 7.4) for letter in text
    )
