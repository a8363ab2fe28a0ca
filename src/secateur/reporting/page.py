"""The report: one HTML file that needs nothing else, made from run records.

Nothing is fetched: styles and a small script (for the buttons that copy a table) stand in the file,
and its content security policy allows them by their hashes and nothing else. Names and texts from
records are escaped. The same records make the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.checkpoint.durable import write_text, writing
from secateur.errors import OutputError, plain
from secateur.record import RunRecord
from secateur.reporting.formats import as_csv, as_latex, as_markdown
from secateur.reporting.grouping import side_by_side
from secateur.reporting.section import section

MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "M-3.6-3.6h7.2v7.2h-7.2z",  # square
    "M0-4.8L4.6 3.4H-4.6z",  # triangle
    "M0-5L5 0L0 5L-5 0z",  # diamond
    "M0 4.8L4.6-3.4H-4.6z",  # triangle on its tip
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
    "M-4.6-2.5L0-4.9L4.6-2.5V2.5L0 4.9L-4.6 2.5z",  # hexagon
)
"""Shapes of marks, around the origin."""
COLOURS = 8

ReportFormat = Literal["html", "markdown", "latex", "csv"]
FILES: dict[str, ReportFormat] = {
    "report.html": "html",
    "table.md": "markdown",
    "table.tex": "latex",
    "table.csv": "csv",
}
"""Name of a file -> what a comparison writes into it, beside its runs."""
REPORT_ENDINGS = (".html", ".md", ".tex", ".csv", ".txt")
"""Endings of the files that a report may replace: another file is hardly an earlier report."""


def render(records: Sequence[RunRecord]) -> str:
    """The page as HTML.

    Args:
        records: at least one; what cannot be compared gets a section of its own.
    """
    here = files(__package__)
    style = here.joinpath("page.css").read_text(encoding="utf-8").strip()
    script = here.joinpath("page.js").read_text(encoding="utf-8").strip()
    templates = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    return templates.get_template("page.html.j2").render(
        sections=[section(comparison) for comparison in side_by_side(records)],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        marks=MARKS,
        colours=COLOURS,
        version=version("secateur"),
    )


@dataclass(frozen=True)
class Report:
    """Runs side by side, as they were written.

    Attributes:
        path: the file; None if it was written nowhere.
        text: what stands in it.
    """

    path: Path | None
    text: str


def write_report(
    records: Sequence[RunRecord], out: Path | None = None, form: ReportFormat = "html"
) -> Report:
    """Put runs side by side and write the report; the file appears whole or not at all.

    Args:
        records: at least one.
        out: the file; none: report.html for a page, nowhere for text.
        form: the page, or its table alone as text.

    Raises:
        OutputError: it cannot be written there, or would replace what is no report.
    """
    _refuse_another_file(out)
    if form == "html":
        text, out = render(records), out or Path("report.html")
    else:
        text = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[form](
            side_by_side(records)
        )
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    return Report(out, text)


def _refuse_another_file(out: Path | None) -> None:
    """Raise if a folder lies there, or a file that by its ending is no report.

    Raises:
        OutputError: one does.
    """
    if out is None or not out.exists():
        return
    if out.is_dir():
        raise OutputError(
            "the report cannot be written: it is a folder", where=out, wanted="a file's name"
        )
    if out.suffix.lower() not in REPORT_ENDINGS:
        raise OutputError(
            "the report cannot be written over a file that is no report",
            where=out,
            wanted=f"a new file, or one that ends in {', '.join(REPORT_ENDINGS)}",
        )


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison did, and where it is written.

    Attributes:
        records: of every run, in the order in which they were done; recovered models come last.
        report: the page, report.html.
        tables: the table as table.md, table.tex and table.csv.
    """

    records: tuple[RunRecord, ...]
    report: Path
    tables: tuple[Path, ...]


def write_comparison(records: Sequence[RunRecord], folder: Path) -> ComparisonResult:
    """Write the page and every form of the table into the folder of a comparison.

    Raises:
        OutputError: they cannot be written there.
    """
    for name, form in FILES.items():
        write_report(records, folder / name, form)
    page, *tables = (folder / name for name in FILES)
    return ComparisonResult(tuple(records), page, tuple(tables))


def _hash(text: str) -> str:
    """As a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
