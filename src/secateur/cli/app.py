"""The command's frame: where commands are registered, options that several share, progress."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import printing
from secateur.machine import processes
from secateur.progress import JsonLines, Progress, Quiet, TerminalBars
from secateur.recipe import Precision

app = typer.Typer(
    help="Prune large language models one block at a time, and prove what was done."
    " Add --debug to any command for the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(help="Folder of a Hugging Face checkpoint, a hub name, or builtin."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes what there is.")]
Dtype = Annotated[
    Precision,
    typer.Option(help="float32, bfloat16, float16; auto: float32 on a CPU, else the model's own."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code that comes with the model, with all your rights. Never needed for the"
        " families of transformers.",
    ),
]
IncludePath = Annotated[
    str | None, typer.Option(help="Folder of your own task files; their code is run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CALIBRATION = (
    "A .txt, .jsonl or .parquet file, a folder of texts, a .safetensors file with input_ids, c4,"
    " wikitext2, builtin (source of the standard library) or self (the dense model writes it)."
)
HELD_OUT = "A file, a folder, c4 or wikitext2 (their test splits), or builtin (modules held out)."
AlsoText = Annotated[
    list[str] | None,
    typer.Option(help="A further text to measure on, beside --text. May be repeated."),
]


def shown() -> Progress:
    """Bars for a person, JSON lines for anything else; of several processes the first shows."""
    if not processes.first():
        return Quiet()
    return TerminalBars(printing.err) if printing.err.is_terminal else JsonLines()
