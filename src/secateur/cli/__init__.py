"""The `secateur` command: parse, call, print. No logic lives here."""

from __future__ import annotations

import sys

import typer
from transformers.utils import logging as transformers_logging

from secateur import show
from secateur.cli import bench, compare, inspect, prune, recover
from secateur.cli.app import app
from secateur.errors import SecateurError

__all__ = ["app", "bench", "compare", "inspect", "main", "prune", "recover"]

INTERRUPTED = 130


def main() -> None:
    """Run the command; bad input is one line on standard error and exit status 2 (or 1)."""
    transformers_logging.disable_progress_bar()  # standard error is ours: bars or JSON lines
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status = app(arguments or ["--help"], standalone_mode=False)
    except SecateurError as fault:
        if debug:
            raise
        show.error(str(fault))
        sys.exit(fault.exit_code)
    except typer.TyperException as fault:  # an unknown option, a word for a number, ...
        show.error(fault.format_message())
        sys.exit(2)
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        show.warn("interrupted")
    sys.exit(status or 0)
