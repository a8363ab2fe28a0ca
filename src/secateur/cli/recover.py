"""`secateur recover`: its options. Parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import printing
from secateur.cli.app import Trust, app, shown


@app.command()
def recover(
    model: Annotated[str, typer.Argument(help="Folder of a pruned model, or a hub name.")],
    text: Annotated[
        str,
        typer.Option(help="What to train on: text or tokens, as --calibration takes them."),
    ],
    out_folder: Annotated[str, typer.Option("--out", help="Folder for the recovered model.")],
    heldout: Annotated[
        str | None,
        typer.Option(help="Text to measure perplexity on: dense, pruned, before and after merge."),
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Of it at most.", show_default="all")] = None,
    dense: Annotated[
        str | None,
        typer.Option(help="The dense model.", show_default="the one that run.json names"),
    ] = None,
    result: Annotated[
        str | None,
        typer.Option(
            help="merged: one sparse model, every zero kept. adapters: plain LoRA beside it.",
            show_default="merged",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="lm: the text itself. distill: what the dense model says of it.",
            show_default="lm",
        ),
    ] = None,
    block_weight: Annotated[
        float | None, typer.Option(help="distill: of the block outputs.", show_default="0")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the factors.", show_default="16")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Scale times rank.", show_default="the rank")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Such as q_proj,v_proj.", show_default="all")
    ] = None,
    steps: Annotated[int | None, typer.Option(show_default="500")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak.", show_default="3e-3")
    ] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps.", show_default="a twentieth")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per batch.", show_default="8")
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Batches per step.", show_default="1")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Training sequences, used again and again.", show_default="all new"),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens per sequence.", show_default="2048")
    ] = None,
    validation: Annotated[
        int | None, typer.Option(help="Sequences kept to judge by.", show_default="32")
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between evaluations and checkpoints.", show_default="a tenth"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many without a new best.", show_default="never"),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of training: float32, bfloat16; auto.", show_default="auto"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="What must hold.", show_default="what run.json says"),
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace the output folder, begin anew.")
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Go on from the checkpoint of a killed run.")
    ] = None,
) -> None:
    """Train a pruned MODEL, keep every zero, and write it to --out."""
    given = dict(locals())
    from secateur import recovery as recovering  # loads peft, which nothing else needs

    given["out"] = given.pop("out_folder")
    values = {name: value for name, value in given.items() if value is not None}
    settings = recovering.Recovery.build(values)
    printing.recovery(recovering.recover(settings, shown()))
