"""`secateur recover`: train back what pruning cost."""

from __future__ import annotations

import secateur
from secateur.cli import printing
from secateur.cli.app import app, progress
from secateur.cli.options import Given, options_of
from secateur.recovery import Recovery


@app.command()
@options_of(Recovery)
def recover(given: Given) -> None:
    """Train a pruned MODEL, keep every zero, and write it to --out."""
    printing.recovery(secateur.recover(**given, progress=progress()))
