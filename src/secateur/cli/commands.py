"""All commands under one name: parse, call. No logic lives here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import typer
from transformers.utils import logging as transformers_logging

from secateur.cli import (  # each registers its command
    bench,
    check,
    cliff,
    compare,
    demo,
    evaluate,
    methods,
    pack,
    prune,
    recover,
    report,
    terminal,
)
from secateur.cli.app import app
from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.machine.memory import use_large_pages
from secateur.machine.waiting import doing

__all__ = [
    "app", "bench", "check", "cliff", "compare", "demo", "evaluate", "methods", "pack", "prune",
    "recover", "report", "run_command",
]  # fmt: skip

SPLIT = ("prune", "evaluate")
"""What several processes can do together."""


def run_command(arguments: Sequence[str]) -> int:
    """Do what the command line asks for, and give the exit status.

    Raises:
        SecateurError: it cannot be done, or not be read.
    """
    use_large_pages()
    transformers_logging.disable_progress_bar()  # standard error is ours: bars or JSON lines
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
    processes.start()
    if not processes.first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if arguments and arguments[0] not in SPLIT:
        processes.alone(arguments[0])
    watch = terminal.watch() if processes.first() else nullcontext()
    command = typer.main.get_command(app)
    status = 0
    try:  # not by app(), which answers Ctrl-C and a closed pipe itself
        with (
            watch,
            command.make_context("secateur", list(arguments) or ["--help"]) as context,
            doing(" ".join(["secateur", *arguments[:1]])),
        ):
            command.invoke(context)
    except typer.Exit as end:  # after --help and --version
        status = end.exit_code
    except typer.TyperException as fault:  # an unknown option, a word for a number, ...
        raise RecipeError(fault.format_message()) from fault
    terminal.flush_output()
    processes.stop()
    return status
