"""The tables of `real.py`, from the records that lie there; what was not measured is left empty."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_plan
import results
from real_log import Log
from real_models import DEQUANTISED, PACKAGED
from real_plan import METHODS, PATTERNS, SCALES, Texts

from secateur.record import RunRecord, read_record
from secateur.reporting.comparison import Comparison, Row, Spread
from secateur.reporting.grouping import side_by_side

MB = 1e6


@dataclass(frozen=True)
class Results:
    """All that lies there, and what it is called.

    Attributes:
        out: folder of all results.
        models: names.
        texts: where text came from.
        log: what was done, on what machine.
        options: as parsed.
    """

    out: Path
    models: Sequence[str]
    texts: Texts
    log: Log
    options: argparse.Namespace

    @property
    def main(self) -> str:
        """The setting of the grid."""
        return real_plan.main_setting(self.options)

    def records(self, model: str, *settings: str) -> list[RunRecord]:
        """Every finished run of a model in these settings."""
        found = [
            read_record(folder)
            for setting in settings
            for folder in sorted((self.out / model / setting / "runs").glob("*"))
        ]
        return [record for record in found if record is not None]

    def comparison(self, model: str, *settings: str) -> Comparison | None:
        """The runs side by side that were measured on the same tokens; of several such the most."""
        sides = side_by_side(self.records(model, *settings))
        return sides[0] if sides else None

    def failures(self, model: str, setting: str) -> Iterator[str]:
        """Why runs of a setting are not there."""
        for name, entry in sorted(self.log.last.items()):
            if entry["status"] == "failed" and name.startswith(f"{model}/{setting}/"):
                yield f"{name.rpartition('/')[2]}: {entry['why']}"

    def beside(self, model: str, setting: str, row: Row) -> str:
        """How many cores other programs kept at work during the runs of a row, on average."""
        names = [
            f"{model}/{setting}/{row.method}_{row.pattern.replace(':', 'of').replace('%', 'pct')}"
            f"_seed{run.settings['seed']}"
            for run in row.runs
        ]
        others = [self.log.last[name]["others"] for name in names if name in self.log.last]
        return f"{sum(others) / len(others):.1f}" if others else ""


def show(
    parts: Sequence[str], models: Sequence[str], texts: Texts, log: Log,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Print the tables of these parts; write the sections, plots and numbers asked for."""
    there = Results(options.out, list(models), texts, log, options)
    numbers: dict[str, Any] = {}
    for part in parts:
        tables = list(TABLES[part](there))
        text = "\n\n".join([heading(part, there), *(table.markdown() for table in tables)])
        print(f"\n## {part}\n\n{text}", flush=True)
        numbers[part] = [
            {"caption": table.caption, "heads": list(table.heads), "rows": list(table.rows)}
            for table in tables
        ]
        if options.markdown is not None:
            results.put(options.markdown, f"real-{part}", text)
    if options.json is not None:
        results.save("real", options, {"runs": log.last}, numbers)


def heading(part: str, there: Results) -> str:
    """On what, by which command."""
    entries = [entry for entry in there.log.last.values() if entry["status"] == "done"]
    machines = {
        f"{entry.get('accelerator') or entry['processor'] + ', ' + entry['cores'] + ' cores'},"
        f" threads: {entry['threads']}"
        for entry in entries
    }
    versions = {
        ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
        for entry in entries
    }
    commits = sorted({entry["commit"] for entry in entries})
    days = sorted({entry["date"][:10] for entry in entries})
    asked = there.options
    given = [f"--{name} FOLDER" for name in ("wikitext", "books") if getattr(asked, name)]
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
        rows = {} if comparison is None else {(r.method, r.pattern): r for r in comparison.rows}
        cells = [
            (method, *(perplexity(rows.get((method, pattern))) for pattern in PATTERNS))
            for method in METHODS
        ]
        dense = "" if comparison is None else f"; dense {comparison.texts[0].dense:.2f}"
        said = (
            f"**{model}**, perplexity on {next(iter(there.texts.heldout))} by pattern{dense}."
            f" {conditions(there, comparison)}"
        )
        if failures := list(there.failures(model, there.main)):
            said += " Failed: " + "; ".join(failures) + "."
        yield results.Table(said, ("", *PATTERNS), cells)
        if comparison is not None:
            for pattern in comparison.patterns:
                yield detail(model, pattern, comparison, there)


def conditions(there: Results, comparison: Comparison | None) -> str:
    """How text was cut, in a sentence."""
    if comparison is None:
        return "Nothing of it was measured."
    record = comparison.runs[0]
    protocols = [text.protocol for text in comparison.texts]
    return (
        f"Calibrated on {record.settings['samples']} x {record.settings['sequence_length']} tokens;"
        f" {', '.join(f'{p.sequences} windows of {p.sequence_length}' for p in protocols[:1])} of"
        f" each text; {record.dtype}."
    )


def detail(model: str, pattern: str, comparison: Comparison, there: Results) -> results.Table:
    """One pattern: both texts, damage removed, seconds, memory."""
    names = list(there.texts.heldout)
    dense = [f"{text.dense:.2f}" if text.dense else "" for text in comparison.texts]
    cells = [("dense", "", *(cell for number in dense for cell in (number, "")), "", "", "")]
    for row in comparison.patterns[pattern]:
        scores = [
            cell
            for score in row.scores
            for cell in (spread(score.perplexity), share(score.removed))
        ]
        memory = row.peak_device_memory_bytes or row.peak_memory_bytes
        cells.append(
            (row.name, str(len(row.runs)), *scores, f"{row.seconds:.0f}", f"{memory / MB:.0f}",
             there.beside(model, there.main, row))
        )  # fmt: skip
    heads = [head for name in names[: len(dense)] for head in (name, "removed")]
    return results.Table(
        f"**{model} at {pattern}**: perplexity (± spread over seeds), and how much of Wanda's"
        " damage is removed. *beside*: cores that other programs kept at work meanwhile; where it"
        " is not near 0, seconds are no timings.",
        ("", "seeds", *heads, "seconds", "peak (MB)", "beside"),
        cells,
    )


def scales(there: Results) -> Iterator[results.Table]:
    """Perplexity by how many tokens there were."""
    for model in there.models:
        methods = ("wanda", "wanda++-rgs", "gblm")
        cells: dict[str, list[str]] = {method: [] for method in methods}
        dense = []
        for samples, length in SCALES:
            setting = real_plan.named(f"{samples}x{length}", there.options.name)
            comparison = there.comparison(model, setting)
            rows = {} if comparison is None else {(r.method, r.pattern): r for r in comparison.rows}
            dense.append("" if comparison is None else f"{comparison.texts[0].dense:.2f}")
            for method in methods:
                row = rows.get((method, "2:4"))
                cells[method] += [perplexity(row), share(row.scores[0].removed) if row else ""]
        heads = [h for samples, length in SCALES for h in (f"{samples} x {length}", "removed")]
        first = ("dense", *(cell for number in dense for cell in (number, "")))
        yield results.Table(
            f"**{model} at 2:4**: perplexity on {next(iter(there.texts.heldout))} by calibration"
            " sequences x tokens, in windows as long as those.",
            ("", *heads),
            [first, *((method, *row) for method, row in cells.items())],
        )


def perplexity(row: Row | None) -> str:
    """On the first text; nothing of no row."""
    return "" if row is None else spread(row.scores[0].perplexity)


def spread(value: Spread) -> str:
    """Mean and spread, with the digits that fit the size."""
    digits = 2 if value.mean < 1000 else 0
    text = f"{value.mean:.{digits}f}"
    return text if value.spread is None else f"{text} ± {value.spread:.{digits}f}"


def share(value: Spread | None) -> str:
    """A share in per cent."""
    if value is None:
        return ""
    text = f"{100 * value.mean:.0f}"
    return f"{text} %" if value.spread is None else f"{text} ± {100 * value.spread:.0f} %"


TABLES: Mapping[str, Any] = {"grid": grid, "scales": scales}
