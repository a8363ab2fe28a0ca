"""What the command writes to: standard output and standard error, lines, tables, amounts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def _console(*, stderr: bool) -> Console:
    """A console that prints something in any width: COLUMNS=0 would hide every line."""
    console = Console(stderr=stderr, highlight=False, emoji=False)
    if console.width < 1:
        console.width = 80
    return console


out = _console(stderr=False)
err = _console(stderr=True)
WIDEST = 10_000
"""Characters that a line of a table may have in a pipe or a file, where no screen bounds it."""


def say(line: str) -> None:
    """Print a line of the result; the terminal wraps it, so that it can be copied and piped."""
    out.print(line, soft_wrap=True)


def warn(line: str) -> None:
    """Print a line on standard error."""
    err.print(line, soft_wrap=True)


def error(text: str) -> None:
    """Print an error as one line on standard error."""
    warn(f"[red]error:[/] {escape(text)}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text; where no person sees it, in the width that it needs.

    On a terminal that is too narrow for it every row is a paragraph, so that nothing is cut off;
    its first cell, which says the most, comes first.
    """
    wide = Console(width=WIDEST, highlight=False, emoji=False)
    made = table(columns, rows)
    if not out.is_terminal:
        wide.print(made)
    elif wide.measure(made).maximum <= out.width:
        out.print(made)
    else:
        for row in rows:
            say(escape(row[0]))
            for column, cell in zip(columns[1:], row[1:], strict=True):
                say(f"  {escape(column)} {escape(cell)}".rstrip())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    made = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        first = number == 0
        made.add_column(
            column, justify="left" if first else "right", overflow="fold", no_wrap=first
        )
    for row in rows:
        made.add_row(*row)
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
