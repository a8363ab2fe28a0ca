"""`secateur report`: earlier runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import app
from secateur.record import find_records
from secateur.reporting import ReportFormat, write_report


@app.command()
def report(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders with run.json below them, or such files."),
    ],
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write; text goes to standard output without it.",
            show_default="report.html",
        ),
    ] = None,
    form: Annotated[
        ReportFormat,
        typer.Option("--format", help="The whole report, or its table to paste or compute with."),
    ] = "html",
) -> None:
    """Put earlier runs side by side: one HTML file that needs nothing else, or the table alone."""
    printing.report(*write_report(find_records(places), out_file, form))
