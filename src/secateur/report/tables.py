"""Tables for the terminal, from records and proofs."""

from __future__ import annotations

from rich.table import Table


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def amount(count: float, unit: str = "") -> str:
    """A number with a decimal prefix: 13500000 -> "13.5 M"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}".rstrip()
