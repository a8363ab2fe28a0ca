"""`secateur pack` and `unpack`: the same weights in fewer bytes, and back."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur import export
from secateur.cli import printing
from secateur.cli.app import Json, Model, Trust, app, shown

Out = Annotated[str, typer.Option(help="The new folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


@app.command()
def pack(
    model: Model,
    out: Out,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a copy of MODEL that is really smaller: 2:4 in bfloat16 takes 56 %. Exact."""
    done = export.pack(
        model,
        out,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        progress=shown(),
    )
    if as_json:
        print(json.dumps(done.as_dict(), indent=2))
    else:
        printing.packing(done)


@app.command()
def unpack(
    model: Model,
    out: Out,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a plain copy of a packed MODEL, its weights bit for bit as they were."""
    done = export.unpack(
        model,
        out,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        progress=shown(),
    )
    if as_json:
        print(json.dumps(done.as_dict(), indent=2))
    else:
        printing.packing(done)
