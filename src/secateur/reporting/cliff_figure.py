"""The curve of damage by share removed: as a table, as text for a terminal, as a chart.

All of them show the loss above the dense model's, whose whiskers are standard errors over windows,
each paired with itself; one window has none. The chart is geometry alone; `charts.svg.j2` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from secateur.comparison.cliff import Cliff, CliffPoint
from secateur.record.narrowed import written
from secateur.reporting.charts import PANEL
from secateur.reporting.figures import Panel
from secateur.reporting.grouping import short_name
from secateur.reporting.scale import Axis, AxisTick
from secateur.reporting.table import printed_number
from secateur.sparsity import IN_FULL

WIDE_CURVE = 680
"""Pixels of the chart on a screen."""
LETTERS_ACROSS, LINES_DOWN = 60, 14
"""Letters of the chart in a terminal, without its scale."""
Place = tuple[float, float, float]
"""How many are gone, the loss above the dense model's, and its standard error, 0 of one window."""


def cliff_title(cliff: Cliff) -> str:
    """What was measured, in a line."""
    protocol = cliff.heldout
    return (
        f"{short_name(cliff.model)} without some of its {_all(cliff)}, by {cliff.method}:"
        f" {short_name(protocol.source)}, {protocol.sequences}"
        f" window{'' if protocol.sequences == 1 else 's'} of {protocol.sequence_length} tokens"
    )


def _all(cliff: Cliff) -> str:
    """What the model has of the structures: "32 blocks", "8 experts of every block"."""
    where = "" if cliff.unit == "blocks" else " of every block"
    return f"{cliff.of} {IN_FULL[cliff.unit]}{where}"


def cliff_table(cliff: Cliff) -> tuple[tuple[str, ...], list[list[str]]]:
    """Heads of the columns, and the cells of every row; the dense model stands first."""
    heads = ("", "perplexity", "divergence", "loss above dense", "damage", IN_FULL[cliff.unit])
    dense = _with_error(cliff.dense_perplexity, cliff.dense_standard_error, 2)
    rows = [["dense", dense, "", "", "", ""]]
    before: Sequence[int | str] = ()
    for point in cliff.points:
        rows.append(
            [
                f"{point.removed} of {cliff.of}, {point.removed / cliff.of:.1%}",
                _with_error(point.perplexity, point.standard_error, 2),
                _with_error(point.divergence, point.divergence_error, 4),
                _with_error(point.loss_above_dense, point.loss_above_dense_error, 4),
                f"{point.damage:+.1%}" if point.damage < 10 else f"{point.damage:+.0%}",
                _named(point.gone, before) if cliff.unit == "blocks" else _left(cliff, point),
            ]
        )
        before = point.gone
    return heads, rows


def cliff_notes(cliff: Cliff) -> list[str]:
    """What one must know to read the table, and what the knee is, a sentence each."""
    errors = (
        "± is the standard error over windows; loss above dense, in nats per token, and divergence"
        " from the dense model pair every window with itself."
    )
    if cliff.heldout.sequences == 1:
        errors = (
            "One window has no standard error: how much the numbers would differ on other text is"
            " not known. Loss above dense and divergence are in nats per token."
        )
    damage = "Damage is the rise of the perplexity above that of the dense model."
    return [knee_sentence(cliff), errors, damage]


def knee_sentence(cliff: Cliff) -> str:
    """Where the curve turns up, and how sure that is."""
    sure = ""
    if cliff.knee_agreement is not None:
        sure = f" ({cliff.knee_agreement:.0%} of the resamplings of the windows say so)"
    if cliff.knee is None:
        return f"No knee: no point lies below the chord of the curve{sure}."
    return (
        f"Knee: {cliff.knee} of {_all(cliff)} ({cliff.knee / cliff.of:.1%}). Up to there"
        f" they cost less than the average of this curve, beyond it more{sure}."
    )


def _with_error(value: float, error: float | None, digits: int) -> str:
    told = printed_number(value, digits)
    return told if error is None else f"{told} ± {printed_number(error, digits)}"


def _named(gone: Sequence[int | str], before: Sequence[int | str]) -> str:
    """Which are gone, or which more than in the row above: "1, 12-14", "+ 17"."""
    more = tuple(gone[: len(before)]) == tuple(before) != ()
    told = written(map(int, gone[len(before) :] if more else gone)).replace(",", ", ")
    return f"+ {told}" if more else told


def _left(cliff: Cliff, point: CliffPoint) -> str:
    return f"{cliff.of - point.removed} left in every block"


def _places(cliff: Cliff) -> list[Place]:
    """The curve from the dense model on."""
    points = [
        (point.removed, point.loss_above_dense, point.loss_above_dense_error or 0.0)
        for point in cliff.points
    ]
    return [(0, 0.0, 0.0), *points]


def _ends(places: Sequence[Place]) -> tuple[float, float]:
    """The least and the largest loss that the whiskers reach; 0 is within."""
    low = min(value - error for _, value, error in places)
    high = max(value + error for _, value, error in places)
    return low, high if high > low else low + 1.0


def cliff_as_text(cliff: Cliff) -> list[str]:
    """The curve in letters: o a point, K the knee, | its standard error."""
    places = _places(cliff)
    across = Axis(0, places[-1][0], 0, LETTERS_ACROSS - 1)
    down = Axis(*_ends(places), LINES_DOWN - 1, 0)
    drawn = [[" "] * LETTERS_ACROSS for _ in range(LINES_DOWN)]
    for (left, start, _), (right, end, _) in pairwise(places):
        first, last = round(across(left)), round(across(right))
        for column in range(first, last):
            value = start + (end - start) * (column - first) / (last - first)
            drawn[round(down(value))][column] = "."
    for removed, value, error in places:
        column = round(across(removed))
        for row in range(round(down(value + error)), round(down(value - error)) + 1):
            drawn[row][column] = "|"
        drawn[round(down(value))][column] = "K" if removed == cliff.knee else "o"
    scale = {round(tick.at): tick.label for tick in down.ticks(4)}
    title = f"loss above dense (nats per token), {cliff.unit} removed of {cliff.of}"
    lines = [title if cliff.knee is None else f"{title}; K is the knee"]
    lines += [
        f"{scale.get(row, ''):>8} |{''.join(drawn[row])}".rstrip() for row in range(LINES_DOWN)
    ]
    below = [" "] * (LETTERS_ACROSS + 4)
    for removed, _, _ in places:
        column, label = round(across(removed)), str(removed)
        if all(letter == " " for letter in below[max(0, column - 1) : column + len(label) + 1]):
            below[column : column + len(label)] = label
    return [*lines, " " * 9 + "+" + "-" * LETTERS_ACROSS, " " * 10 + "".join(below).rstrip()]


@dataclass(frozen=True)
class CliffChart:
    """The curve, its whiskers (x, from, to) and marks, its chord and its knee."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    path: str
    chord: str
    whiskers: tuple[Place, ...]
    marks: tuple[tuple[float, float], ...]
    knee: AxisTick | None
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    x_label: str


def cliff_chart(cliff: Cliff, width: int = PANEL) -> CliffChart:
    """The geometry of the curve, in pixels."""
    places = _places(cliff)
    height, bottom = (230, 196) if width == PANEL else (320, 286)
    left, right = 44, width - 14
    x = Axis(0, places[-1][0], left + 8, right - 8)
    low, high = _ends(places)
    room = 0.04 * (high - low)
    y = Axis(low - room, high + room, bottom, 22)
    marks = tuple((x(removed), y(value)) for removed, value, _ in places)
    return CliffChart(
        width=width,
        height=height,
        left=left,
        right=right,
        bottom=bottom,
        path="M" + "L".join(f"{at_x:g} {at_y:g}" for at_x, at_y in marks),
        chord=f"M{marks[0][0]:g} {marks[0][1]:g}L{marks[-1][0]:g} {marks[-1][1]:g}",
        whiskers=tuple((x(n), y(v - error), y(v + error)) for n, v, error in places if error),
        marks=marks,
        knee=None if cliff.knee is None else AxisTick(x(cliff.knee), f"knee {cliff.knee}"),
        x_ticks=tuple(tick for tick in x.ticks(6) if "." not in tick.label),
        y_ticks=y.ticks(5),
        x_label=f"removed of {_all(cliff)}",
    )


def cliff_panel(cliff: Cliff) -> Panel:
    """The chart with what it says in words, narrow and wide."""
    said = "; ".join(_said(point) for point in cliff.points)
    return Panel(
        heading=f"Loss above the dense model's by {IN_FULL[cliff.unit]} removed",
        title=cliff_title(cliff),
        description=f"Loss above dense, in nats per token: {said}. {knee_sentence(cliff)}",
        narrow=cliff_chart(cliff),
        wide=cliff_chart(cliff, WIDE_CURVE),
    )


def _said(point: CliffPoint) -> str:
    value = _with_error(point.loss_above_dense, point.loss_above_dense_error, 4)
    return f"without {point.removed} {value}"
