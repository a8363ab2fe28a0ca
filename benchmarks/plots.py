"""Plots of the benchmarks, by matplotlib; the same numbers give the same file.

matplotlib is imported when something is drawn: the benchmarks run without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#b9b9b2", "#7fb2dd", "#0b57a4", "#e0a458", "#55524d", "#94bfa7", "#a0327d")
MARKERS = "os^Dvph"
Line = Sequence[tuple[float, float]]


def stacked(
    path: Path,
    title: str,
    names: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    reference: float | None = None,
) -> None:
    """Horizontal bars of parts.

    Args:
        path: the SVG.
        title: what the numbers are.
        names: of the bars, from the top.
        parts: name of a part -> its length in every bar.
        reference: where a line stands.
    """
    figure, (axes,) = _figure(1, (7.2, 1.1 + 0.32 * len(names)))
    ends = [0.0] * len(names)
    for number, (part, lengths) in enumerate(parts.items()):
        axes.barh(names, lengths, left=ends, label=part, color=COLOURS[number % len(COLOURS)])
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for place, end in enumerate(ends):
        axes.text(end, place, f" {end:.2f}", va="center")
    if reference is not None:
        axes.axvline(reference, color="black", linestyle=":", linewidth=1)
    axes.set_xlim(0, max(ends) * 1.12 or 1)
    axes.invert_yaxis()
    axes.set_title(title, loc="left")
    if len(parts) > 1:
        figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
    _save(figure, path)


def lines(path: Path, panels: Mapping[str, Mapping[str, Line]], ylabel: str) -> None:
    """Lines by name, a panel for everything that is varied, both axes logarithmic.

    Args:
        path: the SVG.
        panels: what is varied -> name of a line -> its points.
        ylabel: of all panels.
    """
    figure, axes = _figure(len(panels), (2.4 * len(panels) + 0.6, 2.9))
    for place, (varied, curves) in zip(axes, panels.items(), strict=True):
        for number, (name, points) in enumerate(curves.items()):
            x, y = zip(*points, strict=True)
            style = {"color": COLOURS[(number + 2) % len(COLOURS)], "marker": MARKERS[number % 7]}
            place.plot(x, y, label=name, **style)
        ticks = sorted({x for points in curves.values() for x, _ in points})
        place.set_xscale("log")
        place.set_yscale("log")
        place.set_xticks(ticks, [f"{x:g}" for x in ticks])
        place.minorticks_off()
        place.set_title(varied, loc="left")
        place.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_ylabel(ylabel)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def dots(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str) -> None:
    """Dots on a logarithmic axis: a row for every name, a colour for every series.

    Args:
        path: the SVG.
        panels: heading -> series -> name of a row -> its number; rows may be missing.
        xlabel: of all panels.
    """
    names = list(dict.fromkeys(n for p in panels.values() for s in p.values() for n in s))
    figure, axes = _figure(len(panels), (3.3 * len(panels) + 1.5, 1.2 + 0.24 * len(names)))
    for place, (heading, series) in zip(axes, panels.items(), strict=True):
        for number, (name, values) in enumerate(series.items()):
            rows = [names.index(row) for row in values]
            style = {"color": COLOURS[(number + 2) % len(COLOURS)], "marker": MARKERS[number % 7]}
            place.plot(list(values.values()), rows, linestyle="", label=name, **style)
        place.set_xscale("log")
        place.set_yticks(range(len(names)), names)
        place.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        place.grid(axis="y", linewidth=0.4)
        place.set_title(heading, loc="left")
        place.set_xlabel(xlabel)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "svg.hashsalt": "secateur",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, axes = pyplot.subplots(
        1, panels, figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    # matplotlib ends lines of paths with blanks
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
    path.write_text(text + "\n")
