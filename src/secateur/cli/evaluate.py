"""`secateur evaluate`: what a model scores on text, in tasks or on images."""

from __future__ import annotations

import secateur
from secateur.cli import printing
from secateur.cli.app import Json, app, progress
from secateur.cli.options import Given, options_of
from secateur.evaluation import EvaluationSettings


@app.command()
@options_of(EvaluationSettings)
def evaluate(given: Given, as_json: Json = False) -> None:
    """Measure the perplexity of MODEL on --text, its --tasks, or its top-1 on --images."""
    scored = secateur.evaluate(**given, progress=progress())
    printing.scores(scored, given.get("against"), as_json=as_json)
