"""The table as text: Markdown, LaTeX with booktabs, and CSV.

Markdown and LaTeX print the same cells, to be pasted into a page or a paper. CSV is for programs:
every row and text on a line of its own, numbers unrounded, the unit in the column's name.

A record may be a stranger's: no text of it is markup in the page, an escape sequence in the
terminal, or a formula in the spreadsheet that it is opened in.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from secateur.errors import plain
from secateur.reporting.comparison import Comparison, Row, Spread
from secateur.reporting.table import Cell, table_of
from secateur.reporting.zeroshot import TaskColumn, task_columns


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Title, table and notes of every comparison, in GitHub's Markdown."""
    return "\n".join(map(_markdown, comparisons))


def as_latex(comparisons: Sequence[Comparison]) -> str:
    """A table of every comparison, for LaTeX with the package booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_latex, comparisons))


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """All comparisons under one heading, a line for every row and text."""
    tasks = {id(comparison): task_columns(comparison) for comparison in comparisons}
    every = dict.fromkeys(task.label for columns in tasks.values() for task in columns)
    lines = [
        {
            **_csv_line(comparison, row, number),
            **{name: None for label in every for name in _csv_heads(label)},
            **_csv_tasks(row, tasks[id(comparison)]),
        }
        for comparison in comparisons
        for row in comparison.rows
        for number in (range(len(comparison.texts)) or [None])
    ]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    if lines:
        writer.writerow(map(_in_csv, lines[0]))
    writer.writerows(map(_in_csv, line.values()) for line in lines)
    return written.getvalue()


def _in_csv(cell: object) -> object:
    """A cell that no spreadsheet reads as a formula; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    text = plain(cell)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def _markdown(comparison: Comparison) -> str:
    table = table_of(comparison)
    lines = [
        f"**{_in_markdown(table.title)}**",
        "",
        _piped(["pattern", "method", *table.heads]),
        "|---|---|" + "---:|" * len(table.heads),
    ]
    for pattern, line in table.lines:
        cells = [f"**{_joined(cell)}**" if cell.best else _joined(cell) for cell in line.cells]
        lines.append(_piped([pattern, line.name], cells))
    if table.notes:
        lines += ["", _in_markdown(" ".join(table.notes))]
    return "\n".join(lines) + "\n"


def _piped(texts: Sequence[str], numbers: Sequence[str] = ()) -> str:
    return "| " + " | ".join([*map(_in_markdown, texts), *numbers]) + " |"


def _joined(cell: Cell, sign: str = "±") -> str:
    return f"{cell.mean} {sign} {cell.spread}" if cell.spread else cell.mean


def _in_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", _on_one_line(text))


def _latex(comparison: Comparison) -> str:
    table = table_of(comparison)
    lines = [
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_in_latex('. '.join([table.title, ' '.join(table.notes)]))}}}",
        f"  \\begin{{tabular}}{{ll{'r' * len(table.heads)}}}",
        "    \\toprule",
        _row([_in_latex(head) for head in ("pattern", "method", *table.heads)]),
    ]
    above = None
    for pattern, line in table.lines:
        if pattern != above:
            lines.append("    \\midrule")
        first = "" if pattern == above else _in_latex(pattern)
        lines.append(_row([first, _in_latex(line.name), *map(_latex_cell, line.cells)]))
        above = pattern
    lines += ["    \\bottomrule", "  \\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "    " + " & ".join(cells) + " \\\\"


def _latex_cell(cell: Cell) -> str:
    if not cell.mean:
        return ""
    mean = f"\\mathbf{{{cell.mean}}}" if cell.best else cell.mean
    return "$" + _joined(Cell(mean, cell.spread), r"\pm") + "$"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _in_latex(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(_LATEX.get(character, character) for character in _on_one_line(text))


def _on_one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _csv_line(comparison: Comparison, row: Row, number: int | None) -> dict[str, object]:
    """What a row scored on the text of that number, by the heading of each column."""
    text = None if number is None else comparison.texts[number]
    score = None if number is None else row.scores[number]
    return {
        "model": comparison.model,
        "architecture": comparison.architecture,
        "pattern": row.pattern,
        "method": row.method,
        "setting": row.setting,
        "seeds": " ".join(str(run.settings["seed"]) for run in row.runs),
        "text": text.protocol.source if text else None,
        "token_sha256": text.protocol.token_sha256 if text else None,
        "bos": text.protocol.bos if text else None,
        "dense_perplexity": text.dense if text else None,
        **_csv_spread("perplexity", score.perplexity if score else None),
        "perplexity_standard_error": score.standard_error if score else None,
        **_csv_spread("damage_removed", score.removed if score else None),
        **_csv_spread("divergence_nats", score.divergence if score else None),
        **_csv_spread("output_error", row.output_error),
        "seconds": row.seconds,
        "quantize": row.scheme,
        "weight_bytes": row.weight_bytes,
        "packed_bytes": row.packed_bytes,
        "peak_memory_bytes": row.peak_memory_bytes,
        "peak_device_memory_bytes": row.peak_device_memory_bytes,
    }


def _csv_tasks(row: Row, tasks: Sequence[TaskColumn]) -> dict[str, float | None]:
    """What a row scored in every task, with its standard error, and the dense model beside it."""
    cells: dict[str, float | None] = {}
    for task in tasks:
        scored, dense = task.of(row), task.dense
        values = (
            scored.value if scored else None,
            scored.standard_error if scored else None,
            dense.value if dense else None,
        )
        cells.update(zip(_csv_heads(task.label), values, strict=True))
    return cells


def _csv_heads(label: str) -> tuple[str, str, str]:
    name = label.replace(" ", "_")
    return name, f"{name}_standard_error", f"dense_{name}"


def _csv_spread(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        name: spread.mean if spread else None,
        f"{name}_spread": spread.spread if spread else None,
    }
