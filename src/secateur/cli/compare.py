"""`secateur compare`: methods, patterns and seeds side by side."""

from __future__ import annotations

import secateur
from secateur.cli import printing
from secateur.cli.app import app, progress
from secateur.cli.options import Fields, Given, options_of
from secateur.comparison.settings import ComparisonSettings, shared_keys
from secateur.recipe import Recipe


@app.command()
@options_of(ComparisonSettings, Fields(Recipe, shared_keys()))
def compare(given: Given) -> None:
    """Prune MODEL with every method at every pattern, measure each, and write table and report.

    Finished runs are not repeated: what was interrupted goes on.
    """
    result = secateur.compare(**given, progress=progress(), each=printing.finished_run)
    printing.comparison(result)
