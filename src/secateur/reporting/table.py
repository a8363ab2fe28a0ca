"""The table of a comparison, as a paper would print it: cells for Markdown, LaTeX and the page.

The dense model stands on top, then a group of rows per pattern, the lowest perplexity of each group
marked. Columns that no run has are left out. The notes say what one must know to read the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from secateur.reporting.comparison import Comparison, Row, Spread
from secateur.reporting.grouping import short_name
from secateur.reporting.zeroshot import Scored, TaskColumn, task_columns


@dataclass(frozen=True)
class Cell:
    """A number as it is printed.

    Attributes:
        mean: the number; empty if there is none.
        spread: what stands after the plus-minus sign; empty if there is none.
        best: whether it is the lowest of its group.
    """

    mean: str = ""
    spread: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row as it is printed: the method's name, and a cell for every column."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The cells of a comparison.

    Attributes:
        title: what was compared.
        heads: of every column but those of pattern and method.
        dense: the dense model's row; None if it was not measured.
        groups: pattern -> its rows.
        notes: what one must know to read it, a sentence each.
    """

    title: str
    heads: tuple[str, ...]
    dense: Line | None
    groups: dict[str, tuple[Line, ...]]
    notes: tuple[str, ...]

    @property
    def spread_columns(self) -> tuple[bool, ...]:
        """Whether a column has a spread anywhere."""
        return tuple(any(cell.spread for cell in cells) for cells in self._columns)

    @property
    def _columns(self) -> Iterator[tuple[Cell, ...]]:
        return zip(*(line.cells for _, line in self.lines), strict=True)

    @property
    def lines(self) -> Iterator[tuple[str, Line]]:
        """Pattern and row, from top to bottom; the dense row has no pattern."""
        if self.dense is not None:
            yield "", self.dense
        for pattern, lines in self.groups.items():
            for line in lines:
                yield pattern, line


def table_of(comparison: Comparison) -> Table:
    """The table of a comparison."""
    tasks = {task.label: task for task in task_columns(comparison) if task.leading}
    columns = {
        **{label: _asked(task) for label, task in tasks.items()},
        **_columns(comparison),
    }
    texts = comparison.texts
    dense = None
    known = [Cell("" if text.dense is None else printed_number(text.dense, 2)) for text in texts]
    known += [_task_cell(task.dense) for task in tasks.values()]
    if any(cell.mean for cell in known):
        dense = Line("dense", (*known, *(Cell() for _ in range(len(columns) - len(tasks)))))
    many = len(texts) > 1
    return Table(
        title=title(comparison),
        heads=(
            *(f"perplexity, {text.label}" if many else "perplexity" for text in texts),
            *columns,
        ),
        dense=dense,
        groups={
            pattern: tuple(
                Line(
                    row.name,
                    (
                        *(_perplexity(comparison, row, text) for text in range(len(texts))),
                        *(measure(row) for measure in columns.values()),
                    ),
                )
                for row in rows
            )
            for pattern, rows in comparison.patterns.items()
        },
        notes=(*_notes(comparison, columns), *([OF_TASKS] if tasks else [])),
    )


def title(comparison: Comparison) -> str:
    """What was compared, in a line."""
    texts = " and ".join(
        f"{text.label} ({text.protocol.sequences} windows of {text.protocol.sequence_length}"
        f" tokens{', ' * bool(text.protocol.beginning)}{text.protocol.beginning})"
        for text in comparison.texts
    )
    return f"{short_name(comparison.model)}, pruned" + (f": perplexity on {texts}" if texts else "")


def printed_number(value: float, digits: int) -> str:
    """A number with so many digits after the point; a very large one with three figures."""
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


REMOVED, DIVERGENCE = "Wanda's damage removed (%)", "divergence (nats)"
ERROR, SECONDS, MEMORY = "output error", "seconds", "peak memory (MB)"
WEIGHT_SIZE = "weights (MB)"
OF_TASKS = "Zero-shot tasks: the mean over seeds; ± is the standard error over questions."


def _columns(comparison: Comparison) -> dict[str, Callable[[Row], Cell]]:
    """Heading -> what it shows of a row, for the columns that are not empty."""

    def removed(row: Row) -> Cell:
        return _cell(row.scores[0].removed, 0, 100) if row.scores else Cell()

    def divergence(row: Row) -> Cell:
        return _cell(row.scores[0].divergence, 4) if row.scores else Cell()

    def size(row: Row) -> Cell:
        known = row.weight_bytes if any(one.scheme for one in comparison.rows) else None
        return Cell("" if known is None else printed_number(known / 1e6, 1))

    def device_memory(row: Row) -> Cell:
        peak = row.peak_device_memory_bytes
        return Cell("" if peak is None else printed_number(peak / 1e6, 0))

    every: dict[str, Callable[[Row], Cell]] = {
        REMOVED: removed,
        DIVERGENCE: divergence,
        ERROR: lambda row: _cell(row.output_error, 4),
        WEIGHT_SIZE: size,
        SECONDS: lambda row: Cell(printed_number(row.seconds, 1)),
        MEMORY: lambda row: Cell(printed_number(row.peak_memory_bytes / 1e6, 0)),
        "device memory (MB)": device_memory,
        "seeds": lambda row: Cell(str(len(row.runs)) if len(_counts(comparison)) > 1 else ""),
    }
    return {
        head: measure
        for head, measure in every.items()
        if any(measure(row).mean for row in comparison.rows)
    }


def _cell(value: Spread | None, digits: int, scale: float = 1) -> Cell:
    if value is None:
        return Cell()
    spread = "" if value.spread is None else printed_number(value.spread * scale, digits)
    return Cell(printed_number(value.mean * scale, digits), spread)


def _perplexity(comparison: Comparison, row: Row, text: int) -> Cell:
    cell = _cell(row.scores[text].perplexity, 2)
    best = comparison.best(row.pattern, text)
    if best is None:
        return cell
    lowest = printed_number(best.scores[text].perplexity.mean, 2)
    return Cell(cell.mean, cell.spread, best=row.pruned == best.pruned and cell.mean == lowest)


def _asked(task: TaskColumn) -> Callable[[Row], Cell]:
    """What a column of a task shows of a row."""
    return lambda row: _task_cell(task.of(row))


def _task_cell(scored: Scored | None) -> Cell:
    if scored is None:
        return Cell()
    error = scored.standard_error
    return Cell(printed_number(scored.value, 4), "" if error is None else printed_number(error, 4))


def _counts(comparison: Comparison) -> set[int]:
    """How many seeds the rows have."""
    return {len(row.runs) for row in comparison.rows}


def _notes(comparison: Comparison, columns: dict[str, Callable[[Row], Cell]]) -> Iterator[str]:
    counts = _counts(comparison)
    measures = ["half the range over 2 seeds"] * (2 in counts)
    if more := sorted(count for count in counts if count > 2):
        seeds = " or ".join(map(str, more))
        measures.append(f"the standard deviation over {seeds} seeds")
    if measures:
        yield f"± is {', '.join(measures)}."
    if 1 in counts and len(comparison.rows) > 1:
        yield (
            "One seed: the spread is not known."
            if counts == {1}
            else "Where none stands, there is one seed."
        )
    if not comparison.prunes_alike:
        yield (
            "Rows that pruned different matrices do not compare: the lowest perplexity is marked"
            " among the most rows that pruned the same, if there are two."
        )
    first = comparison.texts[0].label if len(comparison.texts) > 1 else None
    on_first = f" on {first}" if first else ""
    rounded = any(row.scheme for row in comparison.rows)
    if REMOVED in columns:
        yield (
            "Damage removed is (Wanda's perplexity - the method's) / (Wanda's - dense) at the same"
            f" pattern, {'scheme ' if rounded else ''}and seed{on_first}."
        )
    if DIVERGENCE in columns:
        yield (
            f"Divergence is the mean KL divergence per token from the dense model{on_first}, in"
            " nats."
        )
    if WEIGHT_SIZE in columns:
        yield "Weights are those of the whole model, in the bytes that its files take for them."
    if ERROR in columns:
        yield (
            "Output error is norm(dense - pruned) / norm(dense) of a block's output, the mean over"
            " blocks."
        )
