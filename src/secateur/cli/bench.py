"""`secateur bench`: what 2:4 gains or loses on this machine."""

from __future__ import annotations

from secateur import inference
from secateur.cli import printing
from secateur.cli.app import Json, app, progress
from secateur.cli.options import Given, options_of
from secateur.inference import BenchSettings


@app.command()
@options_of(BenchSettings)
def bench(given: Given, as_json: Json = False) -> None:
    """Time prompts and decoding of a 2:4 MODEL: dense beside every sparse form, losses and all."""
    timed = inference.bench(BenchSettings.build(given), progress())
    printing.benchmark(timed, as_json=as_json)
