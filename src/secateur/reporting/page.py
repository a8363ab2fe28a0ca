"""The report: one HTML file that needs nothing else, made from run records.

Nothing is fetched: styles and a small script (for the buttons that copy a table) stand in the file,
and its content security policy allows them by their hashes and nothing else. Names and texts from
records are escaped. The same records make the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.checkpoint.claim import claim_file
from secateur.checkpoint.destination import result_path
from secateur.checkpoint.durable import write_text, writing
from secateur.checkpoint.lock import alone_at
from secateur.comparison.runs import RUNS
from secateur.errors import plain
from secateur.machine.waiting import doing
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
_BEGINNINGS = (
    r'\s*<!doctype html>\s*<html lang="en">\s*<head>\s*<meta charset="utf-8">\s*'
    r'<meta name="generator" content="secateur">',
    r"\*\*[^\n]*\*\*\n\n\| pattern \| method \|",
    r"% needs \\usepackage\{booktabs\}\n\\begin\{table\}",
    "model,architecture,pattern,method,setting,seeds,",
)
"""How the page and its tables as Markdown, LaTeX and CSV begin."""


@doing("drawing the report")
def render(records: Sequence[RunRecord]) -> str:
    """The page as HTML.

    Args:
        records: at least one; what cannot be compared gets a section of its own.
    """
    style = style_sheet()
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8").strip()
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            sections=[section(comparison) for comparison in side_by_side(records)],
            style=Markup(style),
            script=Markup(script),
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
            marks=MARKS,
            colours=COLOURS,
            version=version("secateur"),
        )
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
    records: Sequence[RunRecord],
    out: Path | None = None,
    form: ReportFormat = "html",
    *,
    overwrite: bool = False,
) -> Report:
    """Put runs side by side and write the report; the file appears whole or not at all.

    Args:
        records: at least one.
        out: the file; none: report.html for a page, nowhere for text.
        form: the page, or its table alone as text.
        overwrite: replace a file that is there even if it is no report.

    Raises:
        OutputError: it cannot be written there, or would replace what is no report.
    """
    if form == "html":
        out = out or Path("report.html")
    file = None if out is None else claim_file(out, overwrite=overwrite, ours=is_report)
    if form == "html":
        text = render(records)
    else:
        text = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[form](
            side_by_side(records)
        )
    if file is not None:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return Report(out, text)


def is_report(path: Path) -> bool:
    """Whether a file begins as the reports and tables of this room do: the next may replace it."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(4096).decode("utf-8", errors="replace")
        return any(re.match(beginning, start) for beginning in _BEGINNINGS)
    return False


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


@contextmanager
def comparing_alone(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Inside, page and tables can be written into a folder, and no other comparison writes there.

    Args:
        folder: of the comparison; its parent is made if need be.
        overwrite: whether files of these names may be replaced that are no reports.

    Raises:
        OutputError: they would be replaced, or another comparison is at work, or nothing can be
            written there.
    """
    hint = "moving it away, another --out, or --overwrite"
    for name in FILES:
        claim_file(folder / name, overwrite=overwrite, ours=is_report, hint=hint)
    folder = result_path(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with alone_at(folder):
        with writing(folder):
            (folder / RUNS).mkdir(parents=True, exist_ok=True)  # before any work
        try:
            yield
        finally:
            with suppress(OSError):  # a run is in it
                (folder / RUNS).rmdir()
                folder.rmdir()


def write_comparison(
    records: Sequence[RunRecord], folder: Path, *, overwrite: bool = False
) -> ComparisonResult:
    """Write the page and every form of the table into the folder of a comparison.

    Raises:
        OutputError: they cannot be written there, or would replace what is no report.
    """
    for name, form in FILES.items():
        write_report(records, folder / name, form, overwrite=overwrite)
    page, *tables = (folder / name for name in FILES)
    return ComparisonResult(tuple(records), page, tuple(tables))


def templates() -> Environment:
    """The templates of this room, in which every text is escaped."""
    return Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )


def style_sheet() -> str:
    """The styles of pages and charts."""
    return files(__package__).joinpath("page.css").read_text(encoding="utf-8").strip()


def policy_hash(text: str) -> str:
    """As a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
