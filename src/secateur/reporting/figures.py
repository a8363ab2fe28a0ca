"""The figures of the page: from a comparison to charts, each with words and a table for the eye
that sees no chart.

Every figure is drawn for a phone, and a second time, wider, where fewer than three patterns leave
room on a screen; the style sheet shows one of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.reporting.charts import (
    PANEL,
    RatedName,
    bar_chart,
    dot_plot,
    heat_map,
    span_of,
)
from secateur.reporting.comparison import Comparison, Row
from secateur.reporting.damage import MatrixGroup, error_by_block, error_by_kind, seconds_by_phase
from secateur.reporting.line_charts import line_chart
from secateur.reporting.table import printed_number

WIDE = {1: 680, 2: 506}
"""Panels beside each other -> pixels of each on a screen; more are as wide as on a phone."""


@dataclass(frozen=True)
class Panel:
    """One chart: what it is called, what it says in words, its geometry narrow and wide."""

    heading: str
    title: str
    description: str
    narrow: Any
    wide: Any | None


@dataclass(frozen=True)
class Grid:
    """A plain table of numbers: a head for every column, a head and cells for every row."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Figure:
    """Panels of one kind, and their numbers."""

    kind: str
    panels: tuple[Panel, ...]
    grids: tuple[Grid, ...]
    legend: tuple[str, ...] = ()


def styles(comparison: Comparison) -> dict[str, int]:
    """Every row's name -> the number of its colour and mark, the same in all figures."""
    return {name: i for i, name in enumerate(dict.fromkeys(row.name for row in comparison.rows))}


def perplexity(comparison: Comparison, text: int) -> Figure | None:
    """Perplexity on one text by method, a panel per pattern; None if there is nothing to compare.

    The patterns share a scale unless one of them would be squashed by it.
    """
    if not comparison.texts or len(comparison.rows) < 2:
        return None
    style, dense = styles(comparison), comparison.texts[text].dense
    label = comparison.texts[text].label
    values = {
        pattern: [row.scores[text].perplexity for row in rows]
        for pattern, rows in comparison.patterns.items()
    }
    spans = {pattern: span_of(spreads, dense) for pattern, spreads in values.items()}
    widths = [high - low for low, high in spans.values()]
    if max(widths) < 4 * min(widths):
        shared = (min(low for low, _ in spans.values()), max(high for _, high in spans.values()))
        spans = dict.fromkeys(spans, shared)
    panels = []
    for pattern, rows in comparison.patterns.items():
        texts = [printed_number(value.mean, 2) for value in values[pattern]]
        names = [row.name for row in rows]
        said = _said(names, texts) + ("" if dense is None else f"; dense {dense:.2f}")

        def draw(width: int, rows: Any = rows, pattern: str = pattern, texts: Any = texts) -> Any:
            rated = [
                RatedName(row.name, style[row.name], value, text)
                for row, value, text in zip(rows, values[pattern], texts, strict=True)
            ]
            return dot_plot(rated, dense, spans[pattern], width)

        title = f"Perplexity on {label} at {pattern}"
        panels.append(_panel(pattern, title, said, draw, len(values)))
    away = any(dot.x is None for panel in panels for dot in panel.narrow.dots)
    notes = ("An arrow points to a value off the scale.",) if away else ()
    return Figure("dots", tuple(panels), (), notes)


def errors_by_block(comparison: Comparison) -> Figure | None:
    """Output error of every block, a line per method, a panel per pattern."""
    style = styles(comparison)
    errors_by_row = {id(row): error_by_block(row) for row in comparison.rows}
    known = [error for errors in errors_by_row.values() for error in errors if error is not None]
    if not known:
        return None
    panels, grids = [], []
    for pattern, rows in comparison.patterns.items():
        rows = tuple(row for row in rows if any(e is not None for e in errors_by_row[id(row)]))
        if not rows:
            continue
        names, values = [row.name for row in rows], [errors_by_row[id(row)] for row in rows]
        said = _said(names, [f"{_fixed(line[0])} to {_fixed(line[-1])}" for line in values])

        def draw(width: int, rows: Any = rows, values: Any = values) -> Any:
            names = [row.name for row in rows]
            return line_chart(names, [style[name] for name in names], values, max(known), width)

        title = f"Output error by block at {pattern}"
        words = f"From the first block to the last: {said}"
        panels.append(_panel(pattern, title, words, draw, len(comparison.patterns)))
        lines = zip(*values, strict=False)
        cells = tuple((f"block {i}", tuple(map(_fixed, line))) for i, line in enumerate(lines))
        grids.append(Grid(title, tuple(names), cells))
    return Figure("lines", tuple(panels), tuple(grids))


def errors_by_kind(
    comparison: Comparison, groups_by_row: dict[int, tuple[MatrixGroup, ...]]
) -> Sequence[tuple[str, Figure]]:
    """Pattern -> output error of every matrix, a heat map per method, in one scale of shades."""
    known = [p.output_error for groups in groups_by_row.values() for p in groups]
    top = max((error for error in known if error is not None), default=None)
    if top is None:
        return ()
    figures = []
    for pattern, rows in comparison.patterns.items():
        panels = []
        for row in rows:
            short = short_kinds(groups_by_row[id(row)])
            cells = {
                (short[group.kind], group.block): group.output_error
                for group in groups_by_row[id(row)]
                if group.output_error is not None
            }
            if not cells:
                continue
            by_kind = error_by_kind(groups_by_row[id(row)])
            said = _said(list(by_kind), [_fixed(error) for error in by_kind.values()])

            def draw(width: int, cells: Any = cells) -> Any:
                return heat_map(cells, top, width)

            title = f"Output error of every matrix, {row.name} at {pattern}"
            words = f"Mean over blocks: {said}"
            panels.append(_panel(row.name, title, words, draw, 3 if len(rows) > 1 else 1))
        if panels:
            grid = _grid_by_kind(
                f"Output error by kind of matrix at {pattern}", rows, groups_by_row
            )
            legend = (printed_number(0, 2), printed_number(top, 2))
            figures.append((pattern, Figure("heat", tuple(panels), (grid,), legend)))
    return figures


def time_by_phase(comparison: Comparison) -> Figure:
    """Seconds of a run by phase, a bar per method, a panel per pattern."""
    seconds_by_row = {id(row): seconds_by_phase(row) for row in comparison.rows}
    phases = list(dict.fromkeys(phase for times in seconds_by_row.values() for phase in times))
    phases.sort(key=lambda phase: phase == "other")  # last
    top = max(sum(times.values()) for times in seconds_by_row.values())
    panels, grids = [], []
    for pattern, rows in comparison.patterns.items():
        values = [[seconds_by_row[id(row)].get(phase, 0.0) for phase in phases] for row in rows]
        names, totals = [row.name for row in rows], [printed_number(row.seconds, 1) for row in rows]

        def draw(width: int, names: Any = names, values: Any = values, totals: Any = totals) -> Any:
            return bar_chart(names, values, totals, top, width)

        title = f"Seconds of a run by phase at {pattern}"
        panels.append(_panel(pattern, title, _said(names, totals), draw, len(comparison.patterns)))
        memory = [printed_number(row.peak_memory_bytes / 1e6, 0) for row in rows]
        cells = tuple(
            (name, (*(printed_number(part, 2) for part in parts), total, most))
            for name, parts, total, most in zip(names, values, totals, memory, strict=True)
        )
        heads = (*phases, "in all (s)", "peak memory (MB)")
        grids.append(Grid(f"Time and memory at {pattern}", heads, cells))
    return Figure("bars", tuple(panels), tuple(grids), tuple(phases))


def short_kinds(groups: Sequence[MatrixGroup]) -> dict[str, str]:
    """Kind -> the last part of its name, if no other kind ends like it; else its name."""
    kinds = dict.fromkeys(group.kind for group in groups)
    ends = Counter(kind.rpartition(".")[2] for kind in kinds)
    return {kind: last if ends[last := kind.rpartition(".")[2]] == 1 else kind for kind in kinds}


def _grid_by_kind(
    caption: str, rows: Sequence[Row], groups_by_row: dict[int, tuple[MatrixGroup, ...]]
) -> Grid:
    by_row = [error_by_kind(groups_by_row[id(row)]) for row in rows]
    kinds = dict.fromkeys(kind for errors in by_row for kind in errors)
    cells = tuple((kind, tuple(_fixed(errors.get(kind)) for errors in by_row)) for kind in kinds)
    return Grid(caption, tuple(row.name for row in rows), cells)


def _panel(heading: str, title: str, said: str, draw: Callable[[int], Any], beside: int) -> Panel:
    wide = WIDE.get(beside)
    return Panel(heading, title, f"{said}.", draw(PANEL), draw(wide) if wide else None)


def _said(names: Sequence[str], values: Sequence[str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _fixed(value: float | None) -> str:
    return "" if value is None else printed_number(value, 4)
