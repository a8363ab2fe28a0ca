"""`secateur report`: earlier runs side by side."""

from __future__ import annotations

from typing import Annotated, cast

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import app
from secateur.reporting import ReportFormat


@app.command()
def report(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...", help="Read every run.json below these folders, or these files."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Write to this file; without it a table goes to standard output.",
            show_default="report.html",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="html: write the whole report; markdown, latex, csv: write its table alone.",
        ),
    ] = "html",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a file that is there even if it is no report."),
    ] = False,
) -> None:
    """Put earlier runs side by side: one HTML file that needs nothing else, or the table alone."""
    printing.written_report(
        secateur.report(places, out=out, format=cast("ReportFormat", form), overwrite=overwrite)
    )
