"""`secateur evaluate`, `check` and `methods`: look, and change nothing."""

from __future__ import annotations

from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import (
    HELD_OUT,
    Device,
    Dtype,
    IncludePath,
    Json,
    Model,
    Trust,
    app,
    shown,
)
from secateur.evaluation import Classification, TaskEvaluation


@app.command()
def evaluate(
    model: Model,
    text: Annotated[str | None, typer.Option(help=f"Held-out text. {HELD_OUT}")] = None,
    asked: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Zero-shot tasks by lm-eval, such as arc_easy,hellaswag; wanda++ and wanda are the"
            " papers' lists; continuation is made from --text and needs no network.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="A classifier's top-1 on FOLDER/<class>/*.png; --limit draws some."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model: adds the mean KL divergence per token from it, and what it"
            " scores in the tasks."
        ),
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 2048,
    windows: Annotated[
        int | None, typer.Option(min=1, help="How many windows at most.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per batch.", show_default="about 2048 tokens")
    ] = None,
    include_path: IncludePath = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Questions of each task, or images.", show_default="all"),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Add what it scores to the run.json of MODEL.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Perplexity of MODEL on text, block by block; its scores in --tasks; its top-1 on --images."""
    found = secateur.evaluate(
        model,
        text=text,
        tasks=asked,
        images=images,
        progress=shown(),
        against=against,
        sequence_length=sequence_length,
        windows=windows,
        batch_size=batch_size,
        include_path=include_path,
        limit=limit,
        record=record,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print(found.model_dump_json(indent=2))
    elif isinstance(found, TaskEvaluation):
        printing.task_scores(found)
    elif isinstance(found, Classification):
        printing.classification(found, against)
    else:
        printing.evaluation(found, against)
