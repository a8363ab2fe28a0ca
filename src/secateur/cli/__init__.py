"""The `secateur` command: parse, call, print. No logic lives here."""

from __future__ import annotations

import os
import sys

import typer
from transformers.utils import logging as transformers_logging

from secateur.cli import (  # each registers its command
    bench,
    check,
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
from secateur.errors import SecateurError
from secateur.machine import processes
from secateur.machine.memory import use_large_pages

__all__ = [
    "app", "bench", "check", "compare", "demo", "evaluate", "main", "methods", "pack", "prune",
    "recover", "report",
]  # fmt: skip

INTERRUPTED = 130
SPLIT = ("prune", "evaluate")
"""What several processes can do together."""


def main() -> None:
    """Run the command; bad input is one line on standard error and exit status 2 (or 1).

    Processes that torchrun started do it together, and the first of them prints.
    """
    use_large_pages()
    transformers_logging.disable_progress_bar()  # standard error is ours: bars or JSON lines
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        processes.start()
        if not processes.first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        if arguments and arguments[0] not in SPLIT:
            processes.alone(arguments[0])
        status = app(arguments or ["--help"], standalone_mode=False)
        if status != INTERRUPTED:
            processes.stop()
    except SecateurError as fault:
        if debug:
            raise
        line = str(fault)
        processes.tell_once(lambda: terminal.error(line))
        sys.exit(fault.exit_code)
    except typer.TyperException as fault:  # an unknown option, a word for a number, ...
        line = fault.format_message()
        processes.tell_once(lambda: terminal.error(line))
        sys.exit(2)
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        processes.tell_once(lambda: terminal.warn("interrupted"))
    sys.exit(status or 0)
