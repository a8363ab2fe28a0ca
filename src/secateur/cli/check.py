"""`secateur check`: prove the sparsity of a model from its files."""

from __future__ import annotations

from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import Json, Model, Revision, Trust, app
from secateur.errors import CheckFailedError


@app.command()
def check(
    model: Model,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Demand this pattern of every matrix.",
            show_default="the one in run.json",
        ),
    ] = None,
    revision: Revision = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare every byte of this model's weights with what the run has read.",
            show_default="not looked at",
        ),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Prove the sparsity and the checksums of MODEL from its files. Exit status 1 if one fails."""
    proof = secateur.check(
        model,
        pattern=pattern,
        revision=revision,
        source=source,
        trust_remote_code=trust_remote_code,
    )
    printing.proof(proof, as_json=as_json)
    if proof.complaint is not None:
        raise CheckFailedError(proof.complaint, where=proof.folder)
