"""How damage grows with the share of a model that is removed, before anything is written.

plan       the model and both texts are opened and checked, as for a run that removes
choose     which structures go at every share: their importance is measured once
measure    held-out windows go through the dense model and through it without those of each share,
           side by side: one pass over the files, one block in memory
knee       where the curve turns up (knee.py)

    loss above dense = mean over windows of  loss without - loss of the dense model     in nats
    error            = its standard error over the windows, each paired with itself

The model at a share is the one that `prune` writes for as many structures, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.blocks.stream import Stream
from secateur.checkpoint.claim import claim_file
from secateur.comparison.cliff_settings import TAKEN, CliffSettings, split_cliff_options
from secateur.comparison.knee import knee_of
from secateur.comparison.units import MEASURED, Gone, Unit
from secateur.data import Protocol, TokenBatch
from secateur.evaluation.perplexity import PassedWindows, WindowLosses, by_window, standard_error
from secateur.machine.facts import machine, now, versions
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet
from secateur.pruning.estimate import estimate
from secateur.pruning.fit import place_activations
from secateur.pruning.prepare import Prepared, prepare
from secateur.recipe import Recipe
from secateur.sparsity import Structures

POINTS = 5
"""Shares that are measured where none are given."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class CliffPoint(_Part):
    """The model without some of its structures."""

    removed: int
    """How many are gone."""
    gone: Gone
    """Which, counted from 0 over the whole model, in the order of their choice."""
    perplexity: float
    """exp of the mean negative log-likelihood per predicted token."""
    standard_error: float
    """Standard error of the perplexity, from the spread over windows (first order)."""
    divergence: float
    """Mean KL divergence per predicted token from the dense model, in nats."""
    divergence_error: float
    """Its standard error over the windows."""
    loss_above_dense: float
    """Mean of the windows' losses less the dense model's, in nats per token."""
    loss_above_dense_error: float
    """Its standard error, every window paired with itself."""

    @property
    def damage(self) -> float:
        """By what share of the dense model's the perplexity is higher."""
        return math.expm1(self.loss_above_dense)


class Cliff(_Part):
    """A curve of damage by share removed, and what it was measured on."""

    created: str
    """When, in UTC."""
    model: str
    """Folder or hub name."""
    architecture: str
    """Class of the model."""
    unit: str
    """What is removed."""
    of: int
    """How many of it the model has."""
    method: str
    """What chose them."""
    dense_perplexity: float
    """Perplexity of the dense model on the same windows."""
    dense_standard_error: float
    """Its standard error over the windows."""
    points: tuple[CliffPoint, ...]
    """The model without some, fewest first."""
    knee: int | None
    """How many are gone at the point from which on the curve turns up; None if it does not."""
    knee_agreement: float | None
    """The share of resamplings of the windows that say the same of the knee; None of one window."""
    calibration: Protocol | None
    """What they were chosen on; None for a method that needs nothing."""
    heldout: Protocol
    """What the models were measured on."""
    settings: dict[str, Any]
    """All that was asked for."""
    dtype: str
    """Precision of the computation; log-probabilities are float32."""
    device: str
    """What computed."""
    seconds: float
    """Wall time, without that of reading texts."""
    versions: dict[str, str]
    """Of what the numbers depend on."""
    machine: dict[str, str]
    """What else they depend on."""


@dataclass(frozen=True)
class CliffPlan:
    """A curve that can be measured.

    Attributes:
        settings: what was asked for.
        prepared: the run that removes most, its inputs read and checked.
        counts: how many structures go at every point, ascending.
        file: where the curve is to be written; None for nowhere.
    """

    settings: CliffSettings
    prepared: Prepared
    counts: tuple[int, ...]
    file: Path | None

    @property
    def unit(self) -> Unit:
        """What is removed."""
        return MEASURED[self.settings.pattern]

    @property
    def heldout(self) -> TokenBatch:
        """The windows."""
        return self.prepared.heldout[0]

    @property
    def total(self) -> int:
        """How many structures the model has."""
        return self.prepared.source.how_many(self.settings.pattern)


def plan_cliff(values: Mapping[str, Any]) -> CliffPlan:
    """Check everything that can be checked without work on the model.

    Args:
        values: of `CliffSettings`, and the keys of a recipe that go with it.

    Raises:
        SecateurError: something is unknown, missing, cannot be read, or does not fit.
    """
    settings, taken = split_cliff_options(values)
    file = None if settings.out is None else claim_file(settings.out, overwrite=settings.overwrite)
    name, asked = settings.pattern, settings.patterns()
    pattern = asked[0] if asked else Structures(name, share=0.5)
    own = settings.model_dump(include={"model", "text", "method", "samples", "windows"})
    prepared = prepare(Recipe.build({**taken, **own, "pattern": str(pattern)}))
    total = prepared.source.how_many(name)
    counts = sorted({one.removed_of(total) for one in asked}) or _spread(total)
    most = replace(prepared.plan, structures=Structures(name, count=counts[-1]))
    prepared = _with_room(replace(prepared, plan=most), len(counts))
    return CliffPlan(settings, prepared, tuple(counts), file)


def _spread(total: int) -> list[int]:
    """Numbers of structures from 1 to half of all, as far from each other as may be."""
    half = max(1, total // 2)
    return sorted({1 + (half - 1) * step // (POINTS - 1) for step in range(POINTS)})


def _with_room(prepared: Prepared, points: int) -> Prepared:
    """The run that removes most, with room for the windows of every point at once."""
    source, plan, calibration = prepared.source, prepared.plan, prepared.calibration
    models = prepared.heldout * (1 + points)
    placed = place_activations(prepared.recipe, source, plan, calibration, models)
    stale = prepared.activations.notices  # of the windows of two models
    notices = tuple(line for line in prepared.notices if line not in stale)
    sequences, length = (0, 0) if calibration is None else calibration.inputs.shape[:2]
    shapes = estimate(source, plan, sequences, length)
    width: int = source.model.config.get_text_config(decoder=True).hidden_size
    waiting = sum(text.input_ids.numel() for text in models) * width * source.dtype.itemsize
    shapes = replace(shapes, activation_bytes=max(shapes.activation_bytes, waiting))
    return replace(
        prepared, estimate=shapes, activations=placed, notices=(*notices, *placed.notices)
    )


def measure_cliff(plan: CliffPlan, progress: Progress | None = None) -> Cliff:
    """Choose what goes at every share, measure the models without it, and find the knee.

    Raises:
        NumericalError: a score or a window's likelihood is not finite.
        ModelError: there is no model without these structures.
    """
    began = time.perf_counter()
    prepared, source, settings = plan.prepared, plan.prepared.source, plan.settings
    with doing(f"measuring {settings.model}"), progress or Quiet() as told:
        for line in prepared.notices:
            told.notice(line)
        told.begin(f"{settings.method} {settings.pattern}", plan.total)
        choices = plan.unit.choose(prepared, plan.counts, told.tick)
        for gone in choices:
            plan.unit.check(source, gone)
        windows = plan.heldout.input_ids
        size = batch_size(prepared.recipe.batch_size, windows.shape[1], source)
        stream = Stream(source, windows, size, host=prepared.activations.host)
        stream.check_head(source)
        dense, *others = plan.unit.leave_out(source, stream, [(), *choices], told.tick)
        measured = by_window(source, others, PassedWindows(source, dense))
    if (files := source.watch()) is not None:
        files.check()
    return _curve(plan, choices, measured, time.perf_counter() - began)


def _curve(
    plan: CliffPlan, choices: Sequence[Gone], measured: WindowLosses, seconds: float
) -> Cliff:
    """What was measured, in numbers."""
    prepared, source, settings = plan.prepared, plan.prepared.source, plan.settings
    calibration = prepared.calibration
    above = measured.losses - measured.dense  # [points, windows]
    knee, agreement = knee_of(plan.counts, above)
    of_each = zip(choices, measured.losses, measured.divergences, above, strict=True)
    dense, dense_error = _perplexity(measured.dense)
    taken = prepared.recipe.model_dump(include=set(TAKEN))
    return Cliff(
        created=now(),
        model=settings.model,
        architecture=type(source.model).__name__,
        unit=settings.pattern,
        of=plan.total,
        method=settings.method,
        dense_perplexity=dense,
        dense_standard_error=dense_error,
        points=tuple(_point(*values) for values in of_each),
        knee=None if knee is None else plan.counts[knee],
        knee_agreement=agreement,
        calibration=calibration.protocol if isinstance(calibration, TokenBatch) else None,
        heldout=plan.heldout.protocol,
        settings={**settings.model_dump(), **taken},
        dtype=str(source.dtype).removeprefix("torch."),
        device=str(source.device),
        seconds=seconds,
        versions=versions(),
        machine=machine(source.device),
    )


def _point(gone: Gone, losses: Tensor, divergences: Tensor, above: Tensor) -> CliffPoint:
    """A point, of the windows' losses, divergences and losses above the dense model's [windows]."""
    perplexity, error = _perplexity(losses)
    return CliffPoint(
        removed=len(gone),
        gone=gone,
        perplexity=perplexity,
        standard_error=error,
        divergence=float(divergences.mean()),
        divergence_error=standard_error(divergences),
        loss_above_dense=float(above.mean()),
        loss_above_dense_error=standard_error(above),
    )


def _perplexity(losses: Tensor) -> tuple[float, float]:
    """The perplexity of windows' losses [windows], and its standard error (first order)."""
    perplexity = math.exp(float(losses.mean()))
    return perplexity, perplexity * standard_error(losses)
