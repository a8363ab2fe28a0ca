"""`secateur check`: prove the sparsity of a model from its files."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import Json, Model, Trust, app
from secateur.errors import CheckFailedError
from secateur.record.check import check_folder


@app.command()
def check(
    model: Model,
    pattern: Annotated[
        str | None,
        typer.Option(help="What every matrix must have.", show_default="what its run.json says"),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Prove the sparsity and the checksums of MODEL from its files. Exit status 1 if one fails."""
    proof = check_folder(model, pattern, trust_remote_code=trust_remote_code)
    if as_json:
        print(json.dumps(proof.as_dict(), indent=2))
    else:
        printing.proof(proof)
    if proof.complaint is not None:
        raise CheckFailedError(proof.complaint, where=proof.folder)
