"""`secateur report`: earlier runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import app
from secateur.reporting import ReportFormat


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
    printing.report(secateur.report(places, out=out_file, format=form))
