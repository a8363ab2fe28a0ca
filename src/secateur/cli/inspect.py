"""`secateur evaluate`, `check` and `methods`: look, and change nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur import methods, pipeline, prove, show
from secateur.cli.app import HELD_OUT, Device, Dtype, Json, Model, Trust, app, shown
from secateur.errors import CheckFailedError


@app.command()
def evaluate(
    model: Model,
    text: Annotated[
        str,
        typer.Option(help=f"Held-out text. {HELD_OUT}"),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="The dense model: adds the mean KL divergence per token from it."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 2048,
    windows: Annotated[
        int | None, typer.Option(min=1, help="How many windows at most.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per batch.", show_default="about 8192 tokens")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Perplexity of MODEL on held-out text, in fixed windows, one block in memory."""
    found = pipeline.evaluate(
        model,
        text,
        against=against,
        sequence_length=sequence_length,
        windows=windows,
        together=batch_size,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=shown(),
    )
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        show.evaluation(found, against)


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
    proof = prove.prove(model, pattern, trust_remote_code=trust_remote_code)
    if as_json:
        print(json.dumps(proof.as_dict(), indent=2))
    else:
        show.proof(proof)
    if proof.complaint is not None:
        raise CheckFailedError(proof.complaint, where=proof.folder)


@app.command("methods")
def methods_command(as_json: Json = False) -> None:
    """List the methods, what each needs, its parameters and its paper."""
    if as_json:
        print(json.dumps([method.describe() for method in methods.every()], indent=2))
    else:
        show.methods()
