"""`secateur methods`: what there is to choose from."""

from __future__ import annotations

from secateur.cli import printing
from secateur.cli.app import Json, app


@app.command("methods")
def list_methods(as_json: Json = False) -> None:
    """List the methods, what each needs, its parameters and its paper."""
    printing.methods(as_json=as_json)
