"""`secateur demo`: every method on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import app, shown
from secateur.cli.compare import Overwrite
from secateur.comparison.demo import demo, demo_runs
from secateur.reporting import write_comparison


@app.command("demo")
def demo_command(
    out_folder: Annotated[
        str, typer.Option("--out", help="Folder for the models, the table and the report.")
    ] = "secateur-demo",
    overwrite: Overwrite = False,
) -> None:
    """Prune the bundled model with every method at 2:4, and write a report: minutes, offline."""
    runs = demo_runs(Path(out_folder))
    printing.say(f"every method on the bundled model: {len(runs)} runs, a few minutes")
    records = []
    for done in demo(runs, shown(), overwrite=overwrite):
        records.append(done.record)
        printing.compared(done)
    printing.comparison(write_comparison(records, Path(out_folder)))
