"""Line charts as plain geometry: values by number of a block, or by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.reporting.charts import PANEL, clipped, text_width
from secateur.reporting.scale import Axis, AxisTick, round_step, spread_out


@dataclass(frozen=True)
class Curve:
    """A line of a line chart: its path, its marks with a word each, its label beside the end."""

    name: str
    style: int
    path: str
    marks: tuple[tuple[float, float, str], ...]
    end: tuple[float, float]
    label_y: float


@dataclass(frozen=True)
class LineChart:
    """Values by a number, which `x_label` names, a line for every name; one of reference."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    curves: tuple[Curve, ...]
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    x_label: str
    reference: AxisTick | None = None


def line_chart(
    names: Sequence[str],
    styles: Sequence[int],
    values: Sequence[Sequence[float | None]],
    top: float,
    width: int = PANEL,
) -> LineChart:
    """Values from zero to `top`, by number."""
    height, bottom, left, right = _frame(names, width)
    count = max(map(len, values))
    x = Axis(0, max(1, count - 1), left + 6, right - 8)
    y = Axis(0, top * 1.04 or 1.0, bottom, 12)
    every = max(1, math.ceil(count / (12 if width == PANEL else 24)))
    lines = []
    for name, style, line in zip(names, styles, values, strict=True):
        points = [(x(i), y(value), i) for i, value in enumerate(line) if value is not None]
        marks = [(at_x, at_y, "") for at_x, at_y, index in points if index % every == 0]
        lines.append((name, style, [point[:2] for point in points], marks))
    step = round(round_step(max(1.0, count / 8)))
    x_ticks = tuple(AxisTick(x(index), str(index)) for index in range(0, count, step))
    curves = _curves(lines, bottom)
    return LineChart(width, height, left, right, bottom, curves, x_ticks, y.ticks(4), "block")


@dataclass(frozen=True)
class Sized:
    """A point of a size chart: megabytes, a value, and a word on how they came about."""

    megabytes: float
    value: float
    word: str


def size_chart(
    lines: Mapping[str, Sequence[Sized]],
    reference: float | None,
    span: tuple[float, float],
    width: int = PANEL,
) -> LineChart:
    """Values by size, a line for every name; what is outside the span is not drawn."""
    height, bottom, left, right = _frame(list(lines), width)
    sizes = [point.megabytes for line in lines.values() for point in line]
    room = 0.06 * (max(sizes) - min(sizes)) or 0.05 * max(sizes)
    x = Axis(min(sizes) - room, max(sizes) + room, left + 6, right - 8)
    y = Axis(*span, bottom, 20)
    drawn = []
    for style, (name, line) in enumerate(lines.items()):
        shown = sorted(line, key=lambda point: point.megabytes)
        marks = [
            (x(point.megabytes), y(point.value), point.word)
            for point in shown
            if span[0] <= point.value <= span[1]
        ]
        drawn.append((name, style, [mark[:2] for mark in marks], marks))
    line_of_reference = None
    if reference is not None:
        line_of_reference = AxisTick(y(reference), f"dense {reference:.2f}")
    return LineChart(
        width, height, left, right, bottom, _curves(drawn, bottom), x.ticks(4), y.ticks(4),
        "MB of weights", line_of_reference,
    )  # fmt: skip


def _frame(names: Sequence[str], width: int) -> tuple[float, float, float, float]:
    """The height of a chart, its lower end, and its sides, with room for names at the right."""
    height, bottom = (230, 196) if width == PANEL else (300, 266)
    return height, bottom, 38, width - (14 + max(text_width(clipped(name)) for name in names))


def _curves(
    lines: Sequence[tuple[str, int, list[tuple[float, float]], list[tuple[float, float, str]]]],
    bottom: float,
) -> tuple[Curve, ...]:
    """The lines that have points, with their labels apart from each other."""
    lines = [line for line in lines if line[2]]
    labels = spread_out([points[-1][1] for _, _, points, _ in lines], 14, 12, bottom)
    return tuple(
        Curve(
            name=clipped(name),
            style=style,
            path="M" + "L".join(f"{at_x:g} {at_y:g}" for at_x, at_y in points),
            marks=tuple(marks),
            end=points[-1],
            label_y=label_y,
        )
        for (name, style, points, marks), label_y in zip(lines, labels, strict=True)
    )
