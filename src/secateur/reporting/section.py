"""What the page says about one comparison: facts, findings, figures, what the models write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from secateur.methods import Method, every_of_both
from secateur.reporting import figures
from secateur.reporting.comparison import Comparison, Score
from secateur.reporting.damage import matrix_groups
from secateur.reporting.figures import Figure, Grid
from secateur.reporting.formats import as_csv, as_latex, as_markdown
from secateur.reporting.grouping import name_of_text, short_name
from secateur.reporting.proof import (
    RowAudit,
    RowRemoval,
    audit_row,
    removal_of,
    zeros_of_matrices,
)
from secateur.reporting.reproduce import Repetition, cut_of, facts_of, recipe_of
from secateur.reporting.sizes import perplexity_by_size
from secateur.reporting.table import Cell, Table, printed_number, table_of
from secateur.sparsity import NOTHING_PRUNED

LONGEST_SAMPLE = 600


class Passages(NamedTuple):
    """What was written after a prompt: by the dense model, and pattern -> (method, text)."""

    prompt: str
    dense: str
    pruned: dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class TaskRow:
    """What one row of the comparison scored in one zero-shot task, as it is printed."""

    pattern: str
    name: str
    task: str
    documents: int
    cells: tuple[Cell, Cell, Cell]
    """Of the dense model, of this one, and the difference; ± is a standard error."""


@dataclass(frozen=True)
class Section:
    """One comparison as the page shows it."""

    comparison: Comparison
    heading: str
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    findings: tuple[tuple[str, str], ...]
    table: Table
    formats: tuple[tuple[str, str], ...]
    perplexity: tuple[Figure, ...]
    by_size: tuple[Figure, ...]
    by_block: Figure | None
    by_kind: tuple[tuple[str, Figure], ...]
    removals: dict[str, tuple[RowRemoval, ...]]
    proofs: dict[str, tuple[RowAudit, ...]]
    matrices: tuple[Grid, ...]
    time: Figure
    samples: tuple[Passages, ...]
    tasks: tuple[TaskRow, ...]
    recipes: dict[str, tuple[Repetition, ...]]
    glossary: tuple[Method, ...]


def section(comparison: Comparison) -> Section:
    """Everything that is known of a comparison; what is not known is empty."""
    groups = {id(row): matrix_groups(row) for row in comparison.rows}
    texts = range(len(comparison.texts))
    drawn = [figures.perplexity(comparison, text) for text in texts]
    by_size = [perplexity_by_size(comparison, text) for text in texts]
    names = {row.method for row in comparison.rows if row.pattern != NOTHING_PRUNED}
    patterns = comparison.patterns.items()
    with_zeros = [
        (pattern, rows) for pattern, rows in patterns
        if any(row.runs[0].zeros or not row.runs[0].lost for row in rows)
    ]  # fmt: skip
    return Section(
        comparison=comparison,
        heading=_heading(comparison),
        lead=tuple(_lead(comparison)),
        facts=tuple(facts_of(comparison)),
        findings=tuple(_findings(comparison)),
        table=table_of(comparison),
        formats=(
            ("LaTeX", as_latex([comparison])),
            ("Markdown", as_markdown([comparison])),
            ("CSV", as_csv([comparison])),
        ),
        perplexity=tuple(figure for figure in drawn if figure is not None),
        by_size=tuple(figure for figure in by_size if figure is not None),
        by_block=figures.errors_by_block(comparison),
        by_kind=tuple(figures.errors_by_kind(comparison, groups)),
        removals={p: tuple(map(removal_of, rows)) for p, rows in patterns if rows[0].runs[0].lost},
        proofs={
            p: tuple(audit_row(row, groups[id(row)]) for row in rows) for p, rows in with_zeros
        },
        matrices=tuple(zeros_of_matrices(pattern, rows, groups) for pattern, rows in with_zeros),
        time=figures.time_by_phase(comparison),
        samples=tuple(_samples(comparison)),
        tasks=tuple(_tasks(comparison)),
        recipes={p: tuple(recipe_of(comparison, row) for row in rows) for p, rows in patterns},
        glossary=tuple(method for method in every_of_both() if method.name in names),
    )


def _heading(comparison: Comparison) -> str:
    """What was pruned, how and to what."""
    pruning = [row for row in comparison.rows if row.pattern != NOTHING_PRUNED]
    methods = list(dict.fromkeys(row.method for row in pruning or comparison.rows))
    by = methods[0] if len(methods) == 1 else f"{len(methods)} methods"
    return f"{short_name(comparison.model)}, pruned by {by} to {_listed(comparison.patterns)}"


def _lead(comparison: Comparison) -> Iterator[str]:
    """The model, the text it was measured on, what it was calibrated on: a sentence each."""
    run = comparison.runs[0]
    yield (
        f"{comparison.architecture}, {comparison.weights:,} prunable weights in"
        f" {run.dense_blocks} blocks."
    )
    if comparison.texts:
        texts = _listed(f"{text.label} ({cut_of(text.protocol)})" for text in comparison.texts)
        yield f"Perplexity on {texts}."
    protocols = [run.calibration for run in comparison.runs if run.calibration is not None]
    if protocols:
        cuts = dict.fromkeys(f"{name_of_text(p)} ({cut_of(p)})" for p in protocols)
        yield f"Calibrated on {_listed(cuts)}."
    seeds = {run.settings["seed"] for run in comparison.runs}
    if len(comparison.runs) > 1:
        yield f"{len(comparison.runs)} runs, {len(seeds)} seed{'s' * (len(seeds) > 1)}."


def _listed(parts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _findings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Which method has the lowest perplexity at every pattern, and which cannot be told from it."""
    if not comparison.texts:
        return
    text = comparison.texts[0]
    on_text = f" on {text.label}" if len(comparison.texts) > 1 else ""
    for pattern, rows in comparison.patterns.items():
        best = comparison.best(pattern, 0)
        if best is None:
            continue
        score = best.scores[0]
        alike = [row for row in rows if row.pruned == best.pruned]
        said = f"{best.name} has the lowest perplexity{on_text}"
        if len(alike) < len(rows):
            said += f" of the {len(alike)} rows that pruned the same"
        said += f", {_printed(score)}"
        if text.dense is not None:
            said += f"; dense {printed_number(text.dense, 2)}"
        if score.removed is not None:
            said += f". It removes {100 * score.removed.mean:.0f} % of Wanda's damage"
        near = [row.name for row in alike if row is not best and _meet(score, row.scores[0])]
        if near:
            said += f". The spread does not separate it from {_listed(near)}"
        yield pattern, f"{said}."


def _printed(score: Score) -> str:
    perplexity = score.perplexity
    return printed_number(perplexity.mean, 2) + (
        " (one seed)" if perplexity.spread is None else f" ± {printed_number(perplexity.spread, 2)}"
    )


def _meet(one: Score, other: Score) -> bool:
    """Whether two perplexities are as near as their spreads."""
    a, b = one.perplexity, other.perplexity
    return abs(a.mean - b.mean) <= (a.spread or 0) + (b.spread or 0)


def _samples(comparison: Comparison) -> Iterator[Passages]:
    """What was written after every prompt, by the first seed of every row."""
    samples = [(row, run.sample) for row in comparison.rows for run in row.runs[:1] if run.sample]
    for prompt, dense in dict.fromkeys((sample.prompt, sample.dense) for _, sample in samples):
        by_pattern: dict[str, list[tuple[str, str]]] = {}
        for row, sample in samples:
            if (sample.prompt, sample.dense) == (prompt, dense):
                by_pattern.setdefault(row.pattern, []).append((row.name, _passage(sample.pruned)))
        yield Passages(_passage(prompt), _passage(dense), by_pattern)


def _tasks(comparison: Comparison) -> Iterator[TaskRow]:
    """The zero-shot tasks that the first seed of every row was asked."""
    for row in comparison.rows:
        for score in (score for asked in row.runs[0].tasks for score in asked.scores):
            cells = (
                _score_cell(score.dense, score.dense_standard_error),
                _score_cell(score.value, score.standard_error),
                _score_cell(score.difference, score.difference_error),
            )
            task = f"{score.task} {score.metric}"
            yield TaskRow(row.pattern, row.name, task, score.documents, cells)


def _score_cell(value: float | None, error: float | None) -> Cell:
    return Cell(
        "" if value is None else printed_number(value, 4),
        "" if error is None else printed_number(error, 4),
    )


def _passage(text: str) -> str:
    """Text as it was written, blank edges dropped, not too long."""
    text = text.strip("\n").rstrip()
    return text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + "…"
