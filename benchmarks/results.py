"""What every benchmark does with its numbers: a table, JSON, a section of a page, plots.

    --json FILE        options, date, hardware, versions and all numbers
    --markdown FILE    the tables as Markdown. In a file that holds the two lines
                           <!-- NAME -->  and  <!-- end of NAME -->
                       (docs/benchmarks.md does) only what stands between them is replaced;
                       otherwise they are put at its end, with the tables between them
    --plot FILE        an SVG; needs matplotlib (pip install 'secateur[benchmarks]')

How busy the machine is before the first measurement stands beside the date: numbers from a machine
that was doing other work say so themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from secateur.machine.facts import machine, now, versions

BUSY = 0.2
"""Share of the cores at work from which on a machine counts as busy."""
LOOK = 3.0
"""Seconds for which it is watched."""
OF_THIS_MACHINE = ("--cache", "--folder", "--json", "--markdown", "--plot")
"""Options that say where something lies, and change no number."""


@dataclass(frozen=True)
class Table:
    """A caption, heads and rows of text."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown: the first column to the left, the others to the right."""
        columns = list(zip(self.heads, *self.rows, strict=True))
        widths = [max(3, *map(len, column)) for column in columns]

        def line(cells: Sequence[str]) -> str:
            first, *others = (
                cell.ljust(width) if number == 0 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "| " + " | ".join([first, *others]) + " |"

        rule = "|" + "-" * (widths[0] + 2) + "|"
        rule += "".join("-" * (width + 1) + ":|" for width in widths[1:])
        body = [line(self.heads), rule, *(line(row) for row in self.rows)]
        return f"{self.caption}\n\n" + "\n".join(body)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables in this page")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw an SVG")


def check(options: argparse.Namespace) -> None:
    """End with a line, before the work begins, if its result could not be drawn."""
    if options.plot is not None and find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install 'secateur[benchmarks]'")


def facts(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """When, on what, with what; to be asked for before the first measurement.

    Args:
        device: what is measured.
        threads: of the processes that are measured; none: those of this one.
    """
    load = psutil.cpu_percent(LOOK) / 100 * (os.cpu_count() or 1)
    found: dict[str, Any] = {"date": now(), **machine(device), "processor": _processor()}
    if threads is not None:
        found["threads"] = str(threads)
    return {**found, "load_before": load, "versions": versions()}


def report(
    name: str,
    options: argparse.Namespace,
    found: Mapping[str, Any],
    tables: Sequence[Table],
    numbers: Mapping[str, Any],
    section: str | None = None,
) -> None:
    """Print, and write what was asked for.

    Args:
        name: of the benchmark.
        options: as parsed.
        found: what `facts` gave.
        tables: for reading.
        numbers: for a program.
        section: of the page, if it does not bear the benchmark's name.
    """
    heading = f"{said(found)}\n\n`{command(name)}`"
    text = "\n\n".join([heading, *(table.markdown() for table in tables)])
    print("\n" + text, flush=True)
    save(name, options, found, numbers)
    if options.markdown is not None:
        if options.plot is not None:
            beside = os.path.relpath(options.plot, options.markdown.parent)
            text += f"\n\n![{section or name}]({beside})"
        put(options.markdown, section or name, text)


def save(
    name: str,
    options: argparse.Namespace,
    found: Mapping[str, Any],
    numbers: Mapping[str, Any],
) -> None:
    """Write the JSON, if it was asked for."""
    if options.json is None:
        return
    settings = {
        key: [str(v) for v in value] if isinstance(value, list | tuple) else str(value)
        for key, value in vars(options).items()
        if key not in ("json", "markdown", "plot")
    }
    everything = {"benchmark": name, "options": settings, **found, **numbers}
    options.json.write_text(json.dumps(everything, indent=1) + "\n")


def said(found: Mapping[str, Any]) -> str:
    """Date and hardware in a sentence."""
    cores = int(found["cores"])
    where = found.get("accelerator") or f"{found['processor']}, {cores} cores"
    using = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    line = f"{found['date'][:10]}, {where}, threads: {found['threads']}; {using}."
    load = found["load_before"]
    if load > BUSY * cores:
        line += (
            f" **The machine was busy ({load:.1f} cores before the run): these are no timings.**"
        )
    return line


def commit() -> str:
    """The commit of this tree, with a plus sign if it was changed since; "" outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head, changed = (
        subprocess.run([*git, *words], capture_output=True, text=True)
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def command(name: str) -> str:
    """The command that is running, without the places of files."""
    words, rest = ["python", f"benchmarks/{name}.py"], iter(sys.argv[1:])
    for word in rest:
        if word in OF_THIS_MACHINE:
            next(rest, None)
        else:
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return " ".join(words)


def put(page: Path, name: str, text: str) -> None:
    """Put a text between the marks of a page; at its end, with them, if it has none."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    written = page.read_text() if page.is_file() else ""
    head, begins, rest = written.partition(first)
    _, ends, tail = rest.partition(last)
    if not (begins and ends):
        head, tail = f"{written.rstrip()}\n\n" if written.strip() else "", "\n"
    page.write_text(f"{head}{first}\n\n{text}\n\n{last}{tail}")


def _processor() -> str:
    """The processor as it calls itself."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
