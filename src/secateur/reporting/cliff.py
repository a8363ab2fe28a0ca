"""The door of the curve of damage by share removed: planned, measured, written."""

from __future__ import annotations

from typing import Any

from secateur.comparison.cliff import Cliff, measure_cliff, plan_cliff
from secateur.machine.device import plain_computing
from secateur.machine.paths import Location, location
from secateur.progress import Progress
from secateur.recipe.setting import without_paths
from secateur.reporting.cliff_page import write_cliff


@plain_computing()
def cliff(
    model: Location,
    *,
    text: Location,
    out: Location | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Cliff:
    """Measure how the damage to a model grows with the share removed, before it is pruned.

    Args:
        model: folder or hub name; it is only read.
        text: held-out text to measure on.
        out: file for the curve: .html, .svg, .json or .csv; nothing else is written.
        progress: told what happens; silent by default.
        options: every other field of `CliffSettings`, such as shares and method; and keys of a
            recipe that go with it: calibration, sequence_length, device, ...

    Returns:
        the curve with its standard errors, and its knee.

    Raises:
        SecateurError: something cannot be read, or does not fit; or there is no such model.

    >>> curve = secateur.cliff("builtin", text="builtin", windows=2, calibration="notes.txt",
    ...                        samples=2, sequence_length=64, shares="1,50%")
    >>> [point.removed for point in curve.points]
    [1, 3]
    """
    plan = plan_cliff(
        without_paths({"model": location(model), "text": text, "out": out, **options})
    )
    measured = measure_cliff(plan, progress)
    if plan.file is not None:
        write_cliff(measured, plan.file)
    return measured
