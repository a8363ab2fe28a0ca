"""What the page says about one comparison: facts, findings, proof, samples, how to repeat it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from secateur.data import Protocol
from secateur.methods import Method, every
from secateur.report import figures
from secateur.report.comparison import Comparison, Row, Score
from secateur.report.damage import Place, places
from secateur.report.figures import Figure, Grid, short_kind
from secateur.report.formats import as_csv, as_latex, as_markdown
from secateur.report.grouping import short_name
from secateur.report.record import RunRecord
from secateur.report.table import Table, number, tabulate

LONGEST_SAMPLE = 600


@dataclass(frozen=True)
class Proof:
    """What was counted in the matrices of a row.

    Attributes:
        name, pattern: of the row.
        matrices, holding: of one run: how many, and how many have the pattern in every run.
        weights: of one run.
        sparsity: over all weights; lowest: of the densest matrix.
        failing: names of the matrices that do not have the pattern.
    """

    name: str
    pattern: str
    matrices: int
    holding: int
    weights: int
    sparsity: float
    lowest: float
    failing: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How to repeat the runs of a row."""

    name: str
    pattern: str
    commands: tuple[str, ...]
    yaml: str
    calibrations: tuple[tuple[int, str], ...]
    notices: tuple[str, ...]


class Sample(NamedTuple):
    """What was written after a prompt: by the dense model, and pattern -> (method, text)."""

    prompt: str
    dense: str
    pruned: dict[str, list[tuple[str, str]]]


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
    by_block: Figure | None
    by_kind: tuple[tuple[str, Figure], ...]
    proofs: tuple[Proof, ...]
    matrices: tuple[Grid, ...]
    time: Figure
    samples: tuple[Sample, ...]
    recipes: tuple[Recipe, ...]
    glossary: tuple[Method, ...]


def section(comparison: Comparison) -> Section:
    """Everything that is known of a comparison; what is not known is empty."""
    found = {id(row): places(row) for row in comparison.rows}
    drawn = [figures.perplexity(comparison, text) for text in range(len(comparison.texts))]
    names = {row.method for row in comparison.rows}
    return Section(
        comparison=comparison,
        heading=_heading(comparison),
        lead=tuple(_lead(comparison)),
        facts=tuple(_facts(comparison)),
        findings=tuple(_findings(comparison)),
        table=tabulate(comparison),
        formats=(
            ("LaTeX", as_latex([comparison])),
            ("Markdown", as_markdown([comparison])),
            ("CSV", as_csv([comparison])),
        ),
        perplexity=tuple(figure for figure in drawn if figure is not None),
        by_block=figures.errors_by_block(comparison),
        by_kind=tuple(figures.errors_by_kind(comparison, found)),
        proofs=tuple(_proof(row, found[id(row)]) for row in comparison.rows),
        matrices=tuple(
            _matrices(pattern, rows, found) for pattern, rows in comparison.patterns.items()
        ),
        time=figures.time_by_phase(comparison),
        samples=tuple(_samples(comparison)),
        recipes=tuple(_recipe(comparison, row) for row in comparison.rows),
        glossary=tuple(method for method in every() if method.name in names),
    )


def _heading(comparison: Comparison) -> str:
    """What was pruned, how and to what."""
    methods = list(dict.fromkeys(row.method for row in comparison.rows))
    by = methods[0] if len(methods) == 1 else f"{len(methods)} methods"
    return f"{short_name(comparison.model)}, pruned by {by} to {_listed(comparison.patterns)}"


def _lead(comparison: Comparison) -> Iterator[str]:
    """The model, the text it was measured on, what it was calibrated on: a sentence each."""
    run = comparison.runs[0]
    yield (
        f"{comparison.architecture}, {comparison.weights:,} prunable weights in"
        f" {len(run.blocks)} blocks."
    )
    if comparison.texts:
        texts = _listed(f"{text.label} ({_cut(text.protocol)})" for text in comparison.texts)
        yield f"Perplexity on {texts}."
    protocols = [run.calibration for run in comparison.runs if run.calibration is not None]
    if protocols:
        cuts = dict.fromkeys(f"{short_name(p.source)} ({_cut(p)})" for p in protocols)
        yield f"Calibrated on {_listed(cuts)}."
    seeds = {run.recipe["seed"] for run in comparison.runs}
    if len(comparison.runs) > 1:
        yield f"{len(comparison.runs)} runs, {len(seeds)} seed{'s' * (len(seeds) > 1)}."


def _listed(parts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    runs = comparison.runs
    yield "model", comparison.model
    yield "architecture", comparison.architecture
    yield "prunable weights", f"{comparison.weights:,} in {len(runs[0].blocks)} blocks"
    for text in comparison.texts:
        yield (
            "text",
            f"{_described(text.protocol)}, tokens sha256 {text.protocol.token_sha256[:12]}",
        )
    protocols = [run.calibration for run in runs if run.calibration is not None]
    for said in dict.fromkeys(map(_described, protocols)):
        yield "calibration", said
    seeds = sorted({run.recipe["seed"] for run in runs})
    yield ("seeds" if len(seeds) > 1 else "seed"), ", ".join(map(str, seeds))
    yield "runs", f"{len(runs)}, {_ends([run.created for run in runs])}"
    yield "computed in", ", ".join(dict.fromkeys(f"{run.dtype} on {run.device}" for run in runs))
    yield "machine", _common([run.machine for run in runs])
    yield "versions", _common([run.versions for run in runs])


def _cut(protocol: Protocol) -> str:
    unit = "windows" if protocol.sampling == "windows" else "sequences"
    return f"{protocol.sequences} {unit} of {protocol.sequence_length} tokens"


def _described(protocol: Protocol) -> str:
    """Where tokens came from and how they were cut."""
    return f"{protocol.source}: {_cut(protocol)} ({protocol.sampling})"


def _ends(times: Sequence[str]) -> str:
    first, last = min(times)[:10], max(times)[:10]
    return first if first == last else f"{first} to {last}"


def _common(facts: Sequence[dict[str, str]]) -> str:
    """Key and value of every fact; all values, where runs differ."""
    keys = dict.fromkeys(key for fact in facts for key in fact)
    return ", ".join(
        f"{key} {' / '.join(dict.fromkeys(fact[key] for fact in facts if key in fact))}"
        for key in keys
    )


def _findings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Which method has the lowest perplexity at every pattern, and which cannot be told from it."""
    if not comparison.texts:
        return
    text = comparison.texts[0]
    where = f" on {text.label}" if len(comparison.texts) > 1 else ""
    for pattern, rows in comparison.patterns.items():
        best = comparison.best(pattern, 0)
        if best is None:
            continue
        score = best.scores[0]
        said = f"{best.name} has the lowest perplexity{where}, {_printed(score)}"
        if text.dense is not None:
            said += f"; dense {number(text.dense, 2)}"
        if score.removed is not None:
            said += f". It removes {100 * score.removed.mean:.0f} % of Wanda's damage"
        near = [row.name for row in rows if row is not best and _meet(score, row.scores[0])]
        if near:
            said += f". Within the spread: {', '.join(near)}"
        yield pattern, f"{said}."


def _printed(score: Score) -> str:
    found = score.perplexity
    return number(found.mean, 2) + ("" if found.spread is None else f" ± {number(found.spread, 2)}")


def _meet(one: Score, other: Score) -> bool:
    """Whether two perplexities are as near as their spreads."""
    a, b = one.perplexity, other.perplexity
    return abs(a.mean - b.mean) <= (a.spread or 0) + (b.spread or 0)


def _proof(row: Row, found: Sequence[Place]) -> Proof:
    matrices = sum(place.matrices for place in found)
    failing = tuple(dict.fromkeys(name for place in found for name in place.failing))
    return Proof(
        name=row.name,
        pattern=row.pattern,
        matrices=matrices,
        holding=matrices - len(failing),
        weights=row.runs[0].weights,
        sparsity=min(run.sparsity for run in row.runs),
        lowest=min(place.sparsity for place in found),
        failing=failing,
    )


def _matrices(pattern: str, rows: Sequence[Row], found: dict[int, tuple[Place, ...]]) -> Grid:
    """Share of zeros of every matrix; "fails" beside it where the pattern was not found."""
    first = found[id(rows[0])]
    columns = [{(place.block, place.kind): place for place in found[id(row)]} for row in rows]
    cells = []
    for place in first:
        name = f"{place.block} {short_kind(place.kind, first)}"
        if place.matrices > 1:
            name += f", {place.matrices} of them"
        shape = f"{place.shape[0]} x {place.shape[1]}"
        shares = [_share(column.get((place.block, place.kind))) for column in columns]
        cells.append((name, (shape, *shares)))
    heads = ("shape", *(row.name for row in rows))
    return Grid(f"Zeros of every matrix at {pattern} (%)", heads, tuple(cells))


def _share(place: Place | None) -> str:
    if place is None:
        return ""
    return f"{100 * place.sparsity:.4f}" + (" fails" if place.failing else "")


def _samples(comparison: Comparison) -> Iterator[Sample]:
    """What was written after every prompt, by the first seed of every row."""
    found = [(row, run.sample) for row in comparison.rows for run in row.runs[:1] if run.sample]
    for prompt, dense in dict.fromkeys((sample.prompt, sample.dense) for _, sample in found):
        by_pattern: dict[str, list[tuple[str, str]]] = {}
        for row, sample in found:
            if (sample.prompt, sample.dense) == (prompt, dense):
                by_pattern.setdefault(row.pattern, []).append((row.name, _line(sample.pruned)))
        yield Sample(_line(prompt), _line(dense), by_pattern)


def _line(text: str) -> str:
    """Text on one line, not too long."""
    line = re.sub(r"\s*\n\s*", " ↵ ", text.strip())
    return line if len(line) <= LONGEST_SAMPLE else line[:LONGEST_SAMPLE] + "…"


def _recipe(comparison: Comparison, row: Row) -> Recipe:
    file = f"{row.method}-{row.pattern.replace(':', 'of').replace('%', '')}.yaml"
    return Recipe(
        name=row.name,
        pattern=row.pattern,
        commands=tuple(_commands(comparison, row, file)),
        yaml=f"# {file}\n" + _as_yaml(row.runs[0]),
        calibrations=tuple(
            (run.recipe["seed"], run.calibration.token_sha256)
            for run in row.runs
            if run.calibration is not None
        ),
        notices=tuple(dict.fromkeys(_notices(row))),
    )


def _commands(comparison: Comparison, row: Row, file: str) -> Iterator[str]:
    for run in row.runs:
        out = str(run.recipe.get("out") or f"pruned-{run.recipe['seed']}")
        yield shlex.join(["secateur", "prune", "--recipe", file, "--seed",
                          str(run.recipe["seed"]), "--out", out])  # fmt: skip
    for text in comparison.texts:
        yield shlex.join(["secateur", "evaluate", out, "--text", text.protocol.source,
                          "--sequence-length", str(text.protocol.sequence_length), "--windows",
                          str(text.protocol.sequences), "--against", comparison.model])  # fmt: skip


def _as_yaml(run: RunRecord) -> str:
    """The recipe without what every run has of its own."""
    shared = {k: v for k, v in run.recipe.items() if k not in ("out", "seed", "overwrite")}
    return yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _notices(row: Row) -> Iterator[str]:
    for run in row.runs:
        yield from run.notices
        for block in run.blocks:
            yield from block.notices
