"""Which runs can be compared, and what each row of the comparison is made of.

    removed = (ppl_wanda - ppl) / (ppl_wanda - ppl_dense)     at the same pattern and seed

Only what was measured on the same model and the same tokens stands in one comparison; everything
else makes a comparison of its own. Runs of one method that differ in more than the seed are rows of
their own, with a label that says in what.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.data import Protocol
from secateur.errors import PatternError
from secateur.evaluation import Evaluation
from secateur.methods import every
from secateur.record import RunRecord
from secateur.reporting.comparison import Comparison, Row, Score, Spread, Text
from secateur.reporting.recovered import as_measured
from secateur.sparsity import parse_pattern

BASELINE = "wanda"
SAME_MODEL = 0.005
"""Relative difference up to which two dense perplexities may come from one model's rounding."""


def side_by_side(records: Iterable[RunRecord]) -> tuple[Comparison, ...]:
    """Put runs that can be compared together, those with most runs first."""
    groups: dict[Any, list[RunRecord]] = {}
    for record in _without_copies(map(as_measured, records)):
        key = (record.recipe["model"], record.architecture, record.weights, _hashes(record))
        groups.setdefault(key, []).append(record)
    return tuple(map(_comparison, sorted(groups.values(), key=len, reverse=True)))


def _without_copies(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Every run once: a record may lie beside the model as well, with fewer
    evaluations or tasks."""
    kept: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda run: (-len(run.evaluations), -len(run.tasks))):
        recipe = {key: value for key, value in record.recipe.items() if key != "out"}
        key = json.dumps([record.created, record.seconds, recipe], sort_keys=True, default=str)
        copies = kept.setdefault(key, [])
        if not any(_hashes(record) <= _hashes(copy) for copy in copies):
            copies.append(record)
    return [record for copies in kept.values() for record in copies]


def _hashes(record: RunRecord) -> frozenset[str]:
    """Of the texts that a run was measured on."""
    return frozenset(found.protocol.token_sha256 for found in record.evaluations)


def _comparison(records: list[RunRecord]) -> Comparison:
    labels = _settings(records)
    by_row: dict[tuple[str, str, str], dict[int, RunRecord]] = {}
    for record, label in sorted(zip(records, labels, strict=True), key=lambda p: p[0].created):
        key = (_pattern(record), record.recipe["method"], label)
        by_row.setdefault(key, {})[record.recipe["seed"]] = record  # the latest of each seed
    protocols = [found.protocol for found in records[0].evaluations]
    order = [protocol.token_sha256 for protocol in protocols]
    rows = []
    for (pattern, method, label), by_seed in sorted(by_row.items(), key=_place):
        runs = tuple(by_seed[seed] for seed in sorted(by_seed))
        wanda = _baseline(by_row, pattern, runs[0])
        scores = tuple(_score(runs, wanda, token_sha256) for token_sha256 in order)
        rows.append(Row(method, pattern, label, runs, scores))
    shown = [run for row in rows for run in row.runs]
    notices = list(_doubts(shown))
    if len(shown) < len(records):
        notices.insert(0, "Some runs repeat a method, pattern and seed: the latest is shown.")
    return Comparison(
        model=records[0].recipe["model"],
        architecture=records[0].architecture,
        weights=records[0].weights,
        texts=_texts(protocols, shown),
        rows=tuple(rows),
        notices=tuple(notices),
    )


def _place(item: tuple[tuple[str, str, str], Any]) -> tuple[Any, ...]:
    """Where a row stands: by sparsity, N:M before free choice; by the method's age; by label."""
    (pattern, method, label), _ = item
    names = [known.name for known in every()]
    age = names.index(method) if method in names else len(names)
    try:
        share = parse_pattern(pattern).sparsity
    except PatternError:
        share = 2.0
    return (share, ":" not in pattern, len(pattern), pattern, age, method, label)


def _pattern(record: RunRecord) -> str:
    """The pattern in its one spelling, so that 0.5 and 50% are one."""
    written = str(record.recipe["pattern"])
    try:
        return str(parse_pattern(written))
    except PatternError:
        return written


def _settings(records: Sequence[RunRecord]) -> list[str]:
    """For every run what tells it from runs of the same method, in as few words as possible."""
    by_method: dict[str, list[dict[str, str]]] = {}
    for record in records:
        by_method.setdefault(record.recipe["method"], []).append(_flat(record))
    telling = {method: _telling(settings) for method, settings in by_method.items()}
    labels = []
    for record in records:
        own = _flat(record)
        names = telling[record.recipe["method"]]
        parts = [f"{name}={own.get(name)}" for name in names]
        if record.recovery is not None:
            parts.append(f"recovered, {record.recovery.settings['objective']}")
        labels.append(", ".join(parts))
    return labels


def _telling(settings: Sequence[dict[str, str]]) -> list[str]:
    """The names of settings that tell apart all that differ; none that tells nothing new."""
    telling: list[str] = []
    parts = 1
    for name in dict.fromkeys(name for own in settings for name in own):
        classes = len({tuple(own.get(key) for key in [*telling, name]) for own in settings})
        if classes > parts:
            telling, parts = [*telling, name], classes
    return telling


def _flat(record: RunRecord) -> dict[str, str]:
    """Everything but the seed that decides the result, most telling first."""
    recipe = record.recipe
    regional = recipe.get("regional") or {}
    own = ("preset", "effort") if regional else ()
    found = {name: recipe[name] for name in own if name in recipe}
    if recipe.get("allocation", "uniform") != "uniform":
        found["allocation"] = recipe["allocation"]
    found |= {
        name: recipe.get(name) for name in ("samples", "sequence_length", "calibration", "images")
    }
    found |= {"dtype": record.dtype, **(recipe.get("parameters") or {})}
    found |= {f"regional.{name}": value for name, value in regional.items()}
    return {name: str(value) for name, value in found.items()}


def _baseline(
    by_row: dict[tuple[str, str, str], dict[int, RunRecord]], pattern: str, run: RunRecord
) -> dict[int, RunRecord]:
    """Wanda's runs at a pattern: the only ones, or those calibrated as `run` was; else none."""
    found = [
        runs
        for key, runs in by_row.items()
        if key[:2] == (pattern, BASELINE) and next(iter(runs.values())).recovery is None
    ]
    if len(found) > 1:
        alike = [
            runs for runs in found if _calibrated(next(iter(runs.values()))) == _calibrated(run)
        ]
        found = alike
    return found[0] if len(found) == 1 else {}


def _calibrated(run: RunRecord) -> tuple[Any, ...]:
    return tuple(
        run.recipe.get(name) for name in ("calibration", "images", "samples", "sequence_length")
    )


def _score(runs: Sequence[RunRecord], wanda: dict[int, RunRecord], token_sha256: str) -> Score:
    found = [_evaluation(run, token_sha256) for run in runs]
    removed = []
    for run, own in zip(runs, found, strict=True):
        baseline = wanda.get(run.recipe["seed"], run)
        if baseline is run or own.dense_perplexity is None:
            continue
        before = _evaluation(baseline, token_sha256).perplexity
        if before > own.dense_perplexity:  # else Wanda did no damage to be removed
            removed.append((before - own.perplexity) / (before - own.dense_perplexity))
    perplexity = Spread.of([one.perplexity for one in found])
    assert perplexity is not None
    return Score(
        perplexity=perplexity,
        standard_error=statistics.fmean(one.standard_error for one in found),
        divergence=Spread.of([one.divergence for one in found if one.divergence is not None]),
        removed=Spread.of(removed),
    )


def _evaluation(run: RunRecord, token_sha256: str) -> Evaluation:
    """What a run scored on a text, which it was grouped by."""
    return next(e for e in run.evaluations if e.protocol.token_sha256 == token_sha256)


def _texts(protocols: Sequence[Protocol], runs: Sequence[RunRecord]) -> tuple[Text, ...]:
    """The texts, each with a name of its own."""
    names = [short_name(protocol.source) for protocol in protocols]
    texts = []
    for name, protocol in zip(names, protocols, strict=True):
        label = name if names.count(name) == 1 else f"{name} {protocol.token_sha256[:6]}"
        found = _dense(runs, protocol.token_sha256)
        texts.append(Text(label, protocol, found[0] if found else None))
    return tuple(texts)


def _dense(runs: Sequence[RunRecord], token_sha256: str) -> list[float]:
    found = [_evaluation(run, token_sha256).dense_perplexity for run in runs]
    return [perplexity for perplexity in found if perplexity is not None]


def _doubts(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Why a difference between runs may not be the methods' own."""
    by_seed: dict[int, set[str]] = {}
    for run in runs:
        if run.calibration is not None:
            by_seed.setdefault(run.recipe["seed"], set()).add(run.calibration.sha256)
    if any(len(hashes) > 1 for hashes in by_seed.values()):
        yield (
            "Runs of the same seed were not all calibrated on the same tokens:"
            " part of a difference between methods may come from that."
        )
    for evaluation in runs[0].evaluations:
        dense = _dense(runs, evaluation.protocol.token_sha256)
        if dense and max(dense) - min(dense) > SAME_MODEL * min(dense):
            yield (
                f"The dense model scored from {min(dense):.2f} to {max(dense):.2f} on"
                f" {short_name(evaluation.protocol.source)}:"
                " the runs were not all made from the same weights."
            )
    if len({(run.device, tuple(sorted(run.machine.items()))) for run in runs}) > 1:
        yield "Runs come from different machines or devices: their times do not compare."


def short_name(source: str) -> str:
    """The last part of a path; a name stays as it is."""
    return Path(source).name or source
