"""The command's frame: where commands are registered, options that several share, progress."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur import __version__
from secateur.cli import terminal
from secateur.cli.options import help_text
from secateur.machine import processes
from secateur.progress import JsonLines, Progress, Quiet, TerminalBars
from secateur.recipe import Recipe
from secateur.recipe.setting import setting_of

app = typer.Typer(
    help="Prune large language models one block at a time, and prove what was done."
    " Add --debug to any command for the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model to read: its folder, its GGUF file, its name on the hub, or builtin (it"
        " comes with the package).",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help=help_text(Recipe, "revision"),
        show_default=setting_of(Recipe, "revision").unset or False,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code that comes with the model, with all your rights. The families of"
        " transformers never need it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def progress() -> Progress:
    """Bars for a person, JSON lines for anything else; of several processes the first reports."""
    if not processes.first():
        return Quiet()
    return TerminalBars(terminal.err) if terminal.err.is_terminal else JsonLines()


def _print_version(asked: bool) -> None:
    if asked:
        terminal.say_exactly(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Read the options that stand before a command: there is nothing else to do."""
