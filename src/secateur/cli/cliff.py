"""`secateur cliff`: how damage grows with the share of a model that is removed."""

from __future__ import annotations

from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import Json, app, progress
from secateur.cli.dry_run import show_cliff
from secateur.cli.options import Fields, Given, options_of
from secateur.comparison.cliff_settings import TAKEN, CliffSettings
from secateur.recipe import Recipe


@app.command()
@options_of(CliffSettings, Fields(Recipe, TAKEN))
def cliff(
    given: Given,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how the damage to MODEL grows with the share removed, and find where it turns up.

    Nothing is written but --out, and no model is made: it takes a few sequences, and one block in
    memory at a time.
    """
    if dry_run:
        show_cliff(given)
    else:
        printing.cliff(secateur.cliff(**given, progress=progress()), as_json=as_json)
