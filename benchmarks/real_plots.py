"""The plots of `real.py`, from its tables' rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import plots
from real_plan import MIXTURES, SCALES, mixture_name, setting_named
from real_results import Results

Names = dict[str, dict[str, float]]


def grid(there: Results, path: Path) -> bool:
    """Perplexity of every method at 2:4 on both texts, a panel for each model."""
    panels: dict[str, Names] = {}
    for model in there.models:
        comparison = there.comparison(model, there.main)
        if comparison is None or "2:4" not in comparison.patterns:
            continue
        texts = list(there.texts.heldout)
        panels[f"{model}, 2:4"] = {
            text: {
                **({"dense": found.dense} if found.dense else {}),
                **{r.name: r.scores[i].perplexity.mean for r in comparison.patterns["2:4"]},
            }
            for i, (text, found) in enumerate(zip(texts, comparison.texts, strict=False))
        }
    return _dots(path, panels)


def mixtures(there: Results, path: Path) -> bool:
    """Perplexity of ALPS on every text by calibration."""
    panels: dict[str, Names] = {}
    for model in there.models:
        by_text: Names = {}
        for mixture in there.options.calibrations or MIXTURES:
            name = setting_named(there.options, mixture_name(there.options, mixture))
            comparison = there.comparison(model, name)
            for row in comparison.rows if comparison is not None else ():
                for text, score in zip(there.texts.heldout, row.scores, strict=False):
                    if row.method == "alps":
                        by_text.setdefault(text, {})[mixture] = score.perplexity.mean
        if by_text:
            panels[f"{model}, alps, 2:4"] = by_text
    return _dots(path, panels)


def scales(there: Results, path: Path) -> bool:
    """Perplexity by calibration tokens, a line for every method; windows are as long as those."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model in there.models:
        for samples, length in SCALES:
            comparison = there.comparison(model, f"{samples}x{length}")
            rows = comparison.patterns.get("2:4", ()) if comparison is not None else ()
            for row in rows:
                if row.method in ("wanda", "wanda++-rgs", "gblm"):
                    line = panels.setdefault(model, {}).setdefault(row.method, [])
                    line.append((samples * length, row.scores[0].perplexity.mean))
    if panels:
        plots.lines(path, panels, "perplexity")
    return bool(panels)


def _dots(path: Path, panels: Mapping[str, Names]) -> bool:
    if panels:
        plots.dots(path, panels, "perplexity")
    return bool(panels)


PLOTS: Mapping[str, Callable[[Results, Path], bool]] = {
    "grid": grid,
    "scales": scales,
    "mixtures": mixtures,
}
"""Part -> what draws it; false if there was nothing to draw."""
