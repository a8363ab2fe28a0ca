"""Which runs can be compared, and what each row of the comparison is made of.

    removed = (ppl_wanda - ppl) / (ppl_wanda - ppl_dense)     at the same pattern and seed

Only what was measured on the same model and the same tokens stands in one comparison, whatever the
model was called (its name counts where a record does not know its files); everything else makes a
comparison of its own. Runs of one method that differ in more than the seed are rows of their own,
with a label that says in what.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.data import ImageProtocol, Protocol
from secateur.errors import PatternError
from secateur.evaluation import Evaluation
from secateur.methods import every_of_both
from secateur.recipe import Recipe
from secateur.recipe.differences import deciding
from secateur.record import RunRecord
from secateur.reporting.comparison import Comparison, Row, Score, Spread, Text
from secateur.reporting.labels import deciding_settings, key_of, labels, shared_with_baseline
from secateur.reporting.recovered import as_measured
from secateur.sparsity import parse_pattern

BASELINE = "wanda"
SAME_MODEL = 0.005
"""Relative difference up to which two dense perplexities may come from one model's rounding."""


def side_by_side(records: Iterable[RunRecord]) -> tuple[Comparison, ...]:
    """Put runs that can be compared together, those with most runs first."""
    groups: dict[Any, list[RunRecord]] = {}
    for record in _without_copies(map(as_measured, records)):
        key = (
            tuple(record.source_files.items()) or (record.settings["model"], record.commit),
            record.architecture,
            record.dense_weights,
            _hashes(record),
        )
        groups.setdefault(key, []).append(record)
    return tuple(map(_comparison, sorted(groups.values(), key=len, reverse=True)))


def _without_copies(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Every run once: a record may lie beside the model as well, with fewer
    evaluations or tasks."""
    kept: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda run: (-len(run.evaluations), -len(run.tasks))):
        key = key_of(
            {
                "created": record.created,
                "seconds": record.seconds,
                **deciding(Recipe, record.recipe),
            }
        )
        copies = kept.setdefault(key, [])
        if not any(_hashes(record) <= _hashes(copy) for copy in copies):
            copies.append(record)
    return [record for copies in kept.values() for record in copies]


def _hashes(record: RunRecord) -> frozenset[str]:
    """Of the texts that a run was measured on."""
    return frozenset(found.protocol.token_sha256 for found in record.evaluations)


@dataclass(frozen=True)
class _RowKey:
    """What the runs of one row have in common, as text."""

    pattern: str
    method: str
    label: str
    settings: str


@dataclass(frozen=True)
class _Runs:
    """The runs of one row by seed, and the settings that decided them."""

    settings: Mapping[str, Any]
    by_seed: dict[int, RunRecord]


def _comparison(records: list[RunRecord]) -> Comparison:
    by_row = _rows(records)
    protocols = [scored.protocol for scored in records[0].evaluations]
    order = [protocol.token_sha256 for protocol in protocols]
    rows = []
    for key in sorted(by_row, key=_order):
        by_seed = by_row[key].by_seed
        runs = tuple(by_seed[seed] for seed in sorted(by_seed))
        wanda = _baseline(by_row, key)
        scores = tuple(_score(runs, wanda, token_sha256) for token_sha256 in order)
        rows.append(Row(key.method, key.pattern, key.label, runs, scores, _pruned(runs[0])))
    compared = [run for row in rows for run in row.runs]
    notices = list(_doubts(compared))
    if len(compared) < len(records):
        notices.insert(0, "Some runs repeat a method, pattern and seed: the latest is shown.")
    return Comparison(
        model=records[0].settings["model"],
        architecture=records[0].architecture,
        weights=records[0].dense_weights,
        texts=_texts(protocols, compared),
        rows=tuple(rows),
        notices=tuple(notices),
    )


def _pruned(record: RunRecord) -> str:
    """Which matrix was pruned to which pattern; what was asked for, where that cannot be read."""
    try:
        selection = record.selection
    except PatternError:
        return key_of({"stages": [stage.settings for stage in record.stages]})
    if selection is None:
        return ""
    patterns = {
        matrix.name: str(selection.pattern_of(block.index, matrix.name))
        for block in record.blocks
        for matrix in block.matrices
    }
    return key_of(dict(sorted(patterns.items())))


def _rows(records: Sequence[RunRecord]) -> dict[_RowKey, _Runs]:
    """The runs by row; of those that repeat one the latest."""
    settings = deciding_settings(records)
    told = zip(records, settings, labels(records, settings), strict=True)
    rows: dict[_RowKey, _Runs] = {}
    for record, facts, label in sorted(told, key=lambda one: one[0].created):
        key = _RowKey(record.pattern, record.method, label, key_of(facts))
        rows.setdefault(key, _Runs(facts, {})).by_seed[record.settings["seed"]] = record
    return rows


def _order(row: _RowKey) -> tuple[Any, ...]:
    """Where a row stands: by sparsity, N:M before free choice; by the method's age; by label."""
    names = [known.name for known in every_of_both()]
    age = names.index(row.method) if row.method in names else len(names)
    try:
        share = parse_pattern(row.pattern).sparsity
    except PatternError:
        share = 2.0
    pattern = (":" not in row.pattern, len(row.pattern), row.pattern)
    return (share, *pattern, age, row.method, row.label, row.settings)


def _baseline(rows: Mapping[_RowKey, _Runs], row: _RowKey) -> dict[int, RunRecord]:
    """Wanda's runs at the pattern of a row, by seed, that differ from its runs in the method only.

    None where there are none, or several that differ in parameters of Wanda's own.
    """
    alike = [
        rows[other].by_seed
        for other in rows
        if (other.pattern, other.method) == (row.pattern, BASELINE)
        and next(iter(rows[other].by_seed.values())).recovery is None
        and shared_with_baseline(rows[other].settings) == shared_with_baseline(rows[row].settings)
    ]
    return alike[0] if len(alike) == 1 else {}


def _score(runs: Sequence[RunRecord], wanda: dict[int, RunRecord], token_sha256: str) -> Score:
    found = [_evaluation(run, token_sha256) for run in runs]
    removed = []
    for run, own in zip(runs, found, strict=True):
        baseline = wanda.get(run.settings["seed"], run)
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
            by_seed.setdefault(run.settings["seed"], set()).add(run.calibration.sha256)
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


def name_of_text(protocol: Protocol | ImageProtocol) -> str:
    """The short name of a text or of images; of a mixture those of its parts."""
    parts = protocol.parts if isinstance(protocol, Protocol) else ()
    return " + ".join(short_name(part.source) for part in parts or (protocol,))


def short_name(source: str) -> str:
    """The last part of a path; a name stays as it is."""
    return Path(source).name or source
