"""`secateur prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import app, progress
from secateur.cli.dry_run import show
from secateur.cli.options import Given, options_of
from secateur.recipe import Recipe
from secateur.recipe.yaml_file import read_recipe
from secateur.recovery.stage import run_stages


@app.command()
@options_of(Recipe, without=("stages",), complete=False)
def prune(
    given: Given,
    recipe_file: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="Read any of these from a YAML file, and the stages of a run; options go over it.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, and do nothing.")
    ] = False,
) -> None:
    """Prune MODEL and write the sparse model to --out, or only measure it on --text.

    A run that was interrupted goes on after its last finished block.
    """
    recipe = Recipe.build(given) if recipe_file is None else read_recipe(recipe_file, given)
    if dry_run:
        show(recipe)
    else:
        printing.run(run_stages(recipe, progress()))
