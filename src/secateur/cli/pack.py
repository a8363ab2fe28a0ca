"""`secateur pack` and `unpack`: the same weights in fewer bytes, and back; or one GGUF file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

import secateur
from secateur.cli import printing
from secateur.cli.app import Json, Model, Revision, Trust, app, progress
from secateur.errors import RecipeError
from secateur.export import GgufType
from secateur.gguf.library import GGUF_SUFFIX


class PackFormat(StrEnum):
    """What `secateur pack` writes."""

    PACKED = "packed"
    GGUF = "gguf"


Out = Annotated[str, typer.Option(help="Write the new model to this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


@app.command()
def pack(
    model: Model,
    out: Annotated[
        str, typer.Option(help="Write to this folder; with --format gguf to this file, NAME.gguf.")
    ],
    format: Annotated[  # noqa: A002 - the option's name
        PackFormat,
        typer.Option(
            help="Write a folder for transformers and secateur (packed), or one file for llama.cpp"
            " (gguf) of a Llama, Mistral, Qwen 2 or 3, or Gemma 2 or 3, tokenizer included."
        ),
    ] = PackFormat.PACKED,
    type_: Annotated[
        GgufType | None,
        typer.Option(
            "--type",
            help="Write the matrices of a GGUF file in this type. Q8_0 and Q4_0 round them to 8 and"
            " 4 bits; zeros stay zeros.",
            show_default="F16",
            case_sensitive=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder or file if it exists.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a copy of MODEL that is really smaller: 2:4 in bfloat16 takes 56 %. Exact.

    Or, with --format gguf, as a file that llama.cpp runs.
    """
    if format == PackFormat.GGUF:
        if trust_remote_code:
            raise RecipeError(
                "--trust-remote-code is not for --format gguf", hint="leave it out: no code is run"
            )
        packing = secateur.pack_gguf(
            model,
            out,
            type=type_ or GgufType.F16,
            overwrite=overwrite,
            revision=revision,
            progress=progress(),
        )
        printing.packing(packing, as_json=as_json)
        return
    if type_ is not None:
        raise RecipeError("--type is of a GGUF file", hint="--format gguf, or leave it out")
    if out.lower().endswith(GGUF_SUFFIX):
        raise RecipeError(
            f"--out {out} is the name of a GGUF file", hint="--format gguf, or another name"
        )
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
