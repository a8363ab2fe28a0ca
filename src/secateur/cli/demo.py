"""`secateur demo`: every method on the bundled model."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import app, progress
from secateur.comparison.demo import demo as do_demo
from secateur.comparison.demo import demo_runs
from secateur.errors import OutputError
from secateur.machine.paths import as_path
from secateur.reporting import comparing_alone, write_comparison


@app.command()
def demo(
    out: Annotated[
        str, typer.Option(help="Write the models, the table and the report to this folder.")
    ] = "secateur-demo",
    methods: Annotated[
        str, typer.Option(help="Prune with these methods, separated by commas.", show_default="all")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished runs again.")] = False,
) -> None:
    """Prune the bundled model with every method at 2:4, and write a report: minutes, offline."""
    folder = as_path(out, fault=OutputError)
    runs = demo_runs(folder, [name.strip() for name in methods.split(",") if name.strip()])
    printing.beginning(len(runs))
    records = []
    with comparing_alone(folder, overwrite=overwrite):
        for run in do_demo(runs, progress(), overwrite=overwrite):
            printing.finished_run(run)
            records.append(run.record)
        printing.comparison(write_comparison(records, folder, overwrite=overwrite))
    printing.on_a_real_model()
