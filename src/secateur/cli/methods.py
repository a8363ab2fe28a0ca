"""`secateur methods`: what there is to choose from."""

from __future__ import annotations

import json

from secateur import methods
from secateur.cli import printing
from secateur.cli.app import Json, app


@app.command("methods")
def methods_command(as_json: Json = False) -> None:
    """List the methods, what each needs, its parameters and its paper."""
    if as_json:
        print(json.dumps([method.describe() for method in methods.every()], indent=2))
    else:
        printing.methods()
