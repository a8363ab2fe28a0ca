"""What `real.py` finds in its folder of results, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from real_log import Log
from real_plan import Texts, setting_named

from secateur.record import RunRecord, read_record
from secateur.reporting.comparison import Comparison, Row
from secateur.reporting.grouping import side_by_side


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
        return setting_named(self.options)

    def records(self, model: str, *settings: str) -> list[RunRecord]:
        """Every finished run of a model in these settings."""
        found = [
            read_record(folder)
            for setting in settings
            for folder in sorted((self.out / model / setting / "runs").glob("*"))
        ]
        return [record for record in found if record is not None]

    def rows(self, model: str, *settings: str) -> dict[tuple[str, str], Row]:
        """The same by method and pattern; of settings that differ in more, use `comparison`."""
        comparison = self.comparison(model, *settings)
        rows = () if comparison is None else comparison.rows
        return {(row.method, row.pattern): row for row in rows}

    def comparison(self, model: str, *settings: str) -> Comparison | None:
        """The runs side by side that were measured on the same tokens; of several such the most."""
        sides = side_by_side(self.records(model, *settings))
        return sides[0] if sides else None

    def failures(self, model: str, setting: str) -> Iterator[str]:
        """Which runs of a setting are not there, and why."""
        names: dict[str, list[str]] = {}
        for name, entry in sorted(self.log.last.items()):
            if entry["status"] == "failed" and name.startswith(f"{model}/{setting}/"):
                names.setdefault(entry["why"], []).append(name.rpartition("/")[2])
        for why, failed in names.items():
            yield f"{', '.join(failed)} ({why.replace(str(self.out), 'FOLDER')})"

    def beside(self, model: str, setting: str, row: Row) -> str:
        """How many cores other programs kept at work during the runs of a row, on average."""
        names = [
            f"{model}/{setting}/{row.method}_{row.pattern.replace(':', 'of').replace('%', 'pct')}"
            f"_seed{run.settings['seed']}"
            for run in row.runs
        ]
        others = [self.log.last[name]["others"] for name in names if name in self.log.last]
        return f"{sum(others) / len(others):.1f}" if others else ""
