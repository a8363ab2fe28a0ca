"""`secateur bench`: what 2:4 gains or loses on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from secateur import inference
from secateur.cli import printing
from secateur.cli.app import Device, Dtype, Json, Model, app, shown


@app.command()
def bench(
    model: Model,
    batches: Annotated[str, typer.Option(help="Sequences at once.")] = "1,4,16,64",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after it.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Passes behind each median.")] = 5,
    forms: Annotated[
        str | None,
        typer.Option(
            help="Some of dense, semi-structured, packed and chosen (by accelerate_inference).",
            show_default="all on CUDA, dense elsewhere",
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time prompts and decoding of a 2:4 MODEL: dense beside every sparse form, losses and all."""
    settings = inference.BenchSettings.build(
        {
            "model": model,
            "batches": batches,
            "prompt": prompt,
            "new_tokens": new_tokens,
            "repeats": repeats,
            "forms": forms,
            "dtype": dtype,
            "device": device,
        }
    )
    found = inference.bench(settings, shown())
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        printing.out.print(printing.table(*inference.tabulate(found)))
        for line in inference.summarise(found):
            printing.say(escape(line))
