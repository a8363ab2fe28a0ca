"""`secateur pack` and `unpack`: the same weights in fewer bytes, and back."""

from __future__ import annotations

from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import Json, Model, Revision, Trust, app, progress

Out = Annotated[str, typer.Option(help="Write the new model to this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


@app.command()
def pack(
    model: Model,
    out: Out,
    overwrite: Overwrite = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a copy of MODEL that is really smaller: 2:4 in bfloat16 takes 56 %. Exact."""
    packing = secateur.pack(
        model,
        out,
        overwrite=overwrite,
        revision=revision,
        trust_remote_code=trust_remote_code,
        progress=progress(),
    )
    printing.packing(packing, as_json=as_json)


@app.command()
def unpack(
    model: Model,
    out: Out,
    overwrite: Overwrite = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a plain copy of a packed MODEL, its weights bit for bit as they were."""
    packing = secateur.unpack(
        model,
        out,
        overwrite=overwrite,
        revision=revision,
        trust_remote_code=trust_remote_code,
        progress=progress(),
    )
    printing.packing(packing, as_json=as_json)
