"""The tables of `real.py`, from the records that lie there; what was not measured is left empty."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import real_after_tables
import real_plots
import results
from real_log import Log
from real_models import DEQUANTISED, PACKAGED
from real_plan import (
    METHODS,
    MIXED,
    MIXTURES,
    PATTERNS,
    SCALED,
    SCALES,
    SIZE,
    Texts,
    mixture_name,
    named,
    paper_name,
    setting_named,
)
from real_results import Results

from secateur.reporting.comparison import Comparison, Row, Spread

MB = 1e6


def show(
    parts: Mapping[str, Sequence[str]], texts: Texts, log: Log, options: argparse.Namespace
) -> None:
    """Print the tables of parts; write the sections, plots and numbers that were asked for.

    Args:
        parts: name -> names of the models.
        texts, log, options: see `Results`.
    """
    numbers: dict[str, Any] = {}
    for part, models in parts.items():
        there = Results(options.out, models, texts, log, options)
        tables = list(TABLES[part](there))
        text = "\n\n".join([heading(part, there), *(table.markdown() for table in tables)])
        print(f"\n## {part}\n\n{text}", flush=True)
        numbers[part] = [asdict(table) for table in tables]
        if options.plot is not None and part in real_plots.PLOTS:
            path = options.plot.with_stem(f"{options.plot.stem}-{part}")
            if real_plots.PLOTS[part](there, path) and options.markdown is not None:
                text += f"\n\n![{part}]({os.path.relpath(path, options.markdown.parent)})"
        if options.markdown is not None:
            results.put(options.markdown, f"real-{part}", text)
    results.save("real", options, {"runs": log.last}, numbers)


def heading(part: str, there: Results) -> str:
    """On what, by which command."""
    entries = [
        entry
        for name, entry in there.log.last.items()
        if entry["status"] == "done" and name.partition("/")[0] in there.models
    ]
    machines = {
        f"{entry.get('accelerator') or entry['processor'] + ', ' + entry['cores'] + ' cores'},"
        f" threads: {entry['threads']}"
        for entry in entries
    }
    versions = {
        ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
        for entry in entries
    }
    commits = sorted({entry["commit"] or "some not known" for entry in entries})
    days = sorted({entry["date"][:10] for entry in entries})
    asked = there.options
    given = [f"--{name} FOLDER" for name in ("wikitext", "books") if getattr(asked, name)]
    given += [
        f"--{name.replace('_', '-')} {getattr(asked, name) or 0}"
        for name, default in SIZE.items()
        if (getattr(asked, name) or 0) != default
    ]
    given += [f"--set {' '.join(f'{key}={value}' for key, value in asked.set.items())}"] * bool(
        asked.set
    )
    said = [
        f"{' to '.join(dict.fromkeys([*days[:1], *days[-1:]]))}; {'; '.join(sorted(machines))};"
        f" {'; '.join(sorted(versions))}; commits {', '.join(commits)}.",
        f"`{' '.join([f'python benchmarks/real.py {part} --out FOLDER', *given])}`",
    ]
    if packaged := [name for name in there.models if name in PACKAGED]:
        licences = "; ".join(
            f"{PACKAGED[name].title}: {PACKAGED[name].licence}" for name in packaged
        )
        said.append(f"{DEQUANTISED} {licences}.")
    return "\n\n".join(said if entries else said[1:])


def grid(there: Results) -> Iterator[results.Table]:
    """Method by pattern: perplexity of all patterns, and everything of those that were measured."""
    for model in there.models:
        comparison = there.comparison(model, there.main)
        rows = there.rows(model, there.main)
        cells = [
            (method, *(perplexity(rows.get((method, pattern))) for pattern in PATTERNS))
            for method in METHODS
        ]
        dense = "" if comparison is None else f"; dense {comparison.texts[0].dense:.2f}"
        said = (
            f"**{model}**, perplexity on {next(iter(there.texts.heldout))} by pattern{dense}."
            f" {conditions(comparison)}"
        )
        if failures := list(there.failures(model, there.main)):
            said += " Failed: " + "; ".join(failures) + "."
        yield results.Table(said, ("", *PATTERNS), cells)
        if comparison is not None:
            for pattern in comparison.patterns:
                yield detail(model, pattern, comparison, there)


def conditions(comparison: Comparison | None) -> str:
    """How text was cut, in a sentence."""
    if comparison is None:
        return "Nothing of it was measured."
    record, cut = comparison.runs[0], comparison.texts[0].protocol
    return (
        f"Calibrated on {record.settings['samples']} x {record.settings['sequence_length']} tokens;"
        f" {cut.sequences} windows of {cut.sequence_length} of each text; {record.dtype}."
    )


def detail(model: str, pattern: str, comparison: Comparison, there: Results) -> results.Table:
    """One pattern: both texts, damage removed, seconds, memory."""
    names = list(there.texts.heldout)[: len(comparison.texts)]
    cells = [("dense", "", *dense_cells(comparison), "", "", "")]
    for row in comparison.patterns[pattern]:
        memory = row.peak_device_memory_bytes or row.peak_memory_bytes
        last = seconds(row), f"{memory / MB:.0f}", there.beside(model, there.main, row)
        cells.append((row.name, str(len(row.runs)), *score_cells(row, len(names)), *last))
    return results.Table(
        f"**{model} at {pattern}**: perplexity (± spread over seeds), and how much of Wanda's"
        " damage is removed. *beside*: cores that other programs kept at work meanwhile; where it"
        " is not near 0, seconds are no timings.",
        ("", "seeds", *heads(names), "seconds", "peak (MB)", "beside"),
        cells,
    )


def scales(there: Results) -> Iterator[results.Table]:
    """Perplexity by how many tokens there were."""
    settings = [named(f"{samples}x{length}", there.options.name) for samples, length in SCALES]
    for model in there.models:
        sides = [there.comparison(model, setting) for setting in settings]
        rows = [there.rows(model, setting) for setting in settings]
        dense = [["", ""] if side is None else dense_cells(side)[:2] for side in sides]
        cells = [("dense", *itertools.chain(*dense))]
        for method in SCALED:
            scores = [score_cells(found.get((method, "2:4")), 2)[:2] for found in rows]
            cells.append((method, *itertools.chain(*scores)))
        yield results.Table(
            f"**{model} at 2:4**: perplexity on {next(iter(there.texts.heldout))} (± spread over"
            " seeds) by calibration sequences x tokens, in windows as long as those, and how much"
            " of Wanda's damage is removed.",
            ("", *heads([f"{samples} x {length}" for samples, length in SCALES])),
            cells,
        )


def mixtures(there: Results) -> Iterator[results.Table]:
    """Perplexity on every text by what was calibrated on; what was not measured is only named."""
    names = list(there.texts.heldout)
    asked = there.options.calibrations or MIXTURES
    for model in there.models:
        sides = {
            mixture: there.comparison(
                model, setting_named(there.options, mixture_name(there.options, mixture))
            )
            for mixture in asked
        }
        known = [comparison for comparison in sides.values() if comparison is not None]
        for method in dict.fromkeys([*MIXED, *(row.name for side in known for row in side.rows)]):
            cells = [("dense", *dense_cells(known[0]))] if known else []
            missing = []
            for mixture, side in sides.items():
                rows = () if side is None else side.rows
                row = next((row for row in rows if row.name == method), None)
                if row is None:
                    missing.append(mixture.replace("+", " + "))
                    continue
                scores = score_cells(row, len(names))
                for place, name in enumerate(names):
                    if there.texts.domain[name] in mixture.split("+"):
                        scores[2 * place] = f"({scores[2 * place]})"
                cells.append((mixture.replace("+", " + "), *scores))
            said = (
                f"**{model}, {method} at 2:4**: perplexity by calibration, in brackets where a text"
                " of the same collection is in it, and how much is removed of the damage that Wanda"
                f" does with the same calibration. {conditions(known[0] if known else None)}"
            )
            if known and missing:
                said += f" Not measured: {', '.join(missing)}."
            yield results.Table(said, ("calibrated on", *heads(names)), cells)


def paper(there: Results) -> Iterator[results.Table]:
    """Wanda++ as published, at several rates."""
    options, names = there.options, list(there.texts.heldout)[:2]
    folders = [setting_named(options, paper_name(options, rate)) for rate in options.rates]
    asked: dict[Any, str] = {"wanda": "Wanda"}
    asked |= {rate: f"Wanda++, preset paper, rate {rate:g}" for rate in options.rates}
    asked |= {"wanda++": "Wanda++, preset auto, effort fast"}
    for model in there.models:
        comparison = there.comparison(model, there.main, *folders)
        rows: dict[Any, Row] = {}
        for row in () if comparison is None else comparison.patterns.get("2:4", ()):
            recipe = row.runs[0].recipe
            published = recipe.get("preset") == "paper"
            rows[recipe["regional"]["learning_rate"] if published else row.method] = row
        yield results.Table(
            f"**{model} at 2:4**: perplexity, and how much of Wanda's damage is removed."
            f" {conditions(comparison)} The published rate is 3e-7.",
            ("", *heads(names), "seconds"),
            [
                (name, *score_cells(rows.get(key), len(names)), seconds(rows.get(key)))
                for key, name in asked.items()
            ],
        )


def heads(names: Sequence[str]) -> list[str]:
    """Two columns of every text."""
    return [head for name in names for head in (name, "removed")]


def dense_cells(comparison: Comparison) -> list[str]:
    """The dense model's perplexity on every text, each followed by an empty cell."""
    numbers = [f"{text.dense:.2f}" if text.dense else "" for text in comparison.texts]
    return [cell for number in numbers for cell in (number, "")]


def score_cells(row: Row | None, texts: int) -> list[str]:
    """Perplexity and damage removed on every text; empty cells of no row."""
    if row is None:
        return [""] * 2 * texts
    return [
        cell for score in row.scores for cell in (spread(score.perplexity), share(score.removed))
    ]


def seconds(row: Row | None) -> str:
    """Of a run, the mean over seeds."""
    return "" if row is None else f"{row.seconds:.0f}"


def perplexity(row: Row | None) -> str:
    """On the first text; nothing of no row."""
    return "" if row is None else spread(row.scores[0].perplexity)


def spread(value: Spread) -> str:
    """Mean and spread, with the digits that fit the size."""
    digits = 2 if value.mean < 1000 else 0
    text = f"{value.mean:.{digits}f}"
    return text if value.spread is None else f"{text} ± {value.spread:.{digits}f}"


def share(value: Spread | None) -> str:
    """A share in per cent; of what is more than twice as bad as Wanda only that."""
    if value is None:
        return ""
    if value.mean < -1:
        return "< -100 %"
    text = f"{100 * value.mean:.0f}"
    return f"{text} %" if value.spread is None else f"{text} ± {100 * value.spread:.0f} %"


TABLES: Mapping[str, Callable[[Results], Iterator[results.Table]]] = {
    "grid": grid,
    "scales": scales,
    "mixtures": mixtures,
    "paper": paper,
    "tasks": real_after_tables.tasks,
    "recovery": real_after_tables.recovery,
}
