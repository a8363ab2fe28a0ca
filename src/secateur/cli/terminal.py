"""What the command writes to: standard output and standard error, lines, tables, amounts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateur.errors import OutputError, plain
from secateur.machine.waiting import Watch


class PipedConsole(Console):
    """A console that leaves a closed pipe to the command's own boundary.

    It prints something in any width: COLUMNS=0 would hide every line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)
        if self.width < 1:
            self.width = 80

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise


out = PipedConsole()
err = PipedConsole(stderr=True)
WIDEST = 10_000
"""Characters that a line of a table may have in a pipe or a file, where no screen bounds it."""


def say(line: str) -> None:
    """Print a line of the result; the terminal wraps it, so that it can be copied and piped."""
    with _to_standard_output():
        out.print(plain(line), soft_wrap=True)


def say_exactly(text: str, end: str = "\n") -> None:
    """Print text as it is, for a program to read."""
    with _to_standard_output():
        print(text, end=end, flush=True)


def warn(line: str) -> None:
    """Print a line on standard error."""
    err.print(plain(line), soft_wrap=True)


def watch() -> AbstractContextManager[object]:
    """Inside, standard error says what is being done where it is silent for long and has no bars.

    It is the stream that is written to now: lm-eval and others are kept from it for a while.
    """
    return nullcontext() if err.is_terminal or sys.stderr is None else Watch(sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text; where no person sees it, in the width that it needs.

    On a terminal that is too narrow for it every row is a paragraph, so that nothing is cut off;
    its first cell, which says the most, comes first.
    """
    wide = PipedConsole(width=WIDEST)
    made = table(columns, rows)
    with _to_standard_output():
        if not out.is_terminal:
            wide.print(made)
        elif wide.measure(made).maximum <= out.width:
            out.print(made)
        else:
            for row in rows:
                say(escape(row[0]))
                for column, cell in zip(columns[1:], row[1:], strict=True):
                    say(f"  {escape(column)} {escape(cell)}".rstrip())


def flush_output() -> None:
    """Hand on what was printed.

    Raises:
        OutputError: it cannot be.
    """
    with _to_standard_output():
        sys.stdout.flush()


@contextmanager
def _to_standard_output() -> Iterator[None]:
    """Turn what the system says of a full disk or a closed pipe into one line."""
    try:
        yield
    except OSError as fault:
        raise OutputError(
            f"standard output cannot be written ({fault.strerror})",
            hint="> FILE on a disk with space, and no pipe that ends before the command does",
        ) from fault


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    made = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        first = number == 0
        made.add_column(
            column, justify="left" if first else "right", overflow="fold", no_wrap=first
        )
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def amount(count: float, unit: str = "") -> str:
    """A number with a decimal prefix: 13500000 -> "13.5 M"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        rounded = float(f"{count / size:.3g}")  # so that 999 999 is 1 M, not 1e+03 k
        if abs(rounded) >= 1:
            return f"{rounded:g} {prefix}{unit}"
    return f"{count:.3g} {unit}".rstrip()


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """A value and its standard error, as in "0.5120 ± 0.0110"; nothing where there is no value."""
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
