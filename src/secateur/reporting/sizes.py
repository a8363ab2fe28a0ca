"""The figure that asks whether to prune more or to round more: perplexity by bytes."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.reporting.charts import PANEL, span_of
from secateur.reporting.comparison import Comparison, Row, Spread
from secateur.reporting.figures import WIDE, Figure, Grid, Panel
from secateur.reporting.line_charts import Sized, size_chart
from secateur.reporting.table import printed_number
from secateur.sparsity import NOTHING_PRUNED

_AS_THEY_ARE = "as they are"
"""The word for weights that are not quantised."""


def perplexity_by_size(comparison: Comparison, text: int) -> Figure | None:
    """Perplexity on one text by bytes: a line per pattern, a point per precision.

    A point is the method of the lowest mean perplexity. Bytes are those of all weights, and zeros
    take none but a bit for every place, where that is less. None if all rows have one pattern and
    one precision; rows of which the bytes are not known, by an earlier version, are not drawn.
    """
    best: dict[tuple[str, str | None], Row] = {}
    sized = [row for row in comparison.rows if row.packed_bytes is not None]
    for row in sized if comparison.texts else ():
        key = (row.pattern, row.scheme)
        known = best.setdefault(key, row)
        if _perplexity(row, text).mean < _perplexity(known, text).mean:
            best[key] = row
    if len(best) < 2:
        return None
    label, dense = comparison.texts[text].label, comparison.texts[text].dense
    lines: dict[str, list[Sized]] = {}
    cells: list[tuple[str, tuple[str, ...]]] = []
    dense_bytes = _dense_bytes(comparison.rows)
    if dense is not None and dense_bytes is not None:
        lines[NOTHING_PRUNED] = [Sized(dense_bytes / 1e6, dense, "")]
        size = printed_number(dense_bytes / 1e6, 1)
        cells.append((NOTHING_PRUNED, (_AS_THEY_ARE, "", size, size, printed_number(dense, 2))))
    order = list(comparison.patterns)
    rows = sorted(
        best.values(), key=lambda row: (order.index(row.pattern), -(row.packed_bytes or 0))
    )
    for row in rows:
        pattern, scheme = row.pattern, row.scheme
        stored, packed = row.weight_bytes or 0, row.packed_bytes or 0
        value = _perplexity(row, text)
        lines.setdefault(pattern, []).append(Sized(packed / 1e6, value.mean, scheme or ""))
        sizes = (printed_number(amount / 1e6, 1) for amount in (stored, packed))
        precision = scheme or _AS_THEY_ARE
        cells.append((pattern, (precision, row.method, *sizes, printed_number(value.mean, 2))))
    span = span_of([_perplexity(row, text) for row in best.values()], dense)
    said = "; ".join(
        f"{pattern}, weights {precision}{method and f', by {method}'}: {value} in {packed} MB"
        for pattern, (precision, method, _, packed, value) in cells
    )
    panel = Panel(
        heading=f"{label}, the best method of each",
        title=f"Perplexity on {label} by megabytes of weights",
        description=f"{said}.",
        narrow=size_chart(lines, dense, span, PANEL),
        wide=size_chart(lines, dense, span, WIDE[1]),
    )
    heads = ("weights", "method", "MB in files", "MB without zeros", "perplexity")
    away = any(not span[0] <= point.value <= span[1] for line in lines.values() for point in line)
    notes = ("What is off the scale stands in the numbers alone.",) if away else ()
    return Figure("lines", (panel,), (Grid(panel.title, heads, tuple(cells)),), notes)


def _perplexity(row: Row, text: int) -> Spread:
    return row.scores[text].perplexity


def _dense_bytes(rows: Sequence[Row]) -> int | None:
    """The bytes of the dense model's weights: those of a row that has all of them, unrounded."""
    whole = (row.weight_bytes for row in rows if row.scheme is None and not row.runs[0].lost)
    return next((amount for amount in whole if amount is not None), None)
