"""How damage grows with the share of a model that is removed, before anything is written.

plan       the model and both texts are opened and checked, as for a run that removes
choose     which structures go at every share: their importance is measured once
measure    held-out windows go through the dense model and through it without those of each share,
           side by side: one pass over the files, one block in memory
knee       where the curve turns up (knee.py)

    loss above dense = mean over windows of  loss without - loss of the dense model     in nats
    error            = its standard error over the windows, each paired with itself

The model at a share is the one that `prune` writes for as many structures, but for rounding. What
structures are, and how they are left out, is in units.py.
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

from secateur.checkpoint.claim import claim_file
from secateur.comparison.cliff_settings import TAKEN, CliffSettings, split_cliff_options
from secateur.comparison.knee import knee_of
from secateur.comparison.units import MEASURED, Gone, Unit
from secateur.data import Protocol, TokenBatch
from secateur.errors import ModelError, PatternError, SecateurError
from secateur.evaluation.perplexity import PassedWindows, WindowLosses, by_window, standard_error
from secateur.machine.facts import machine, now, versions
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet
from secateur.pruning.estimate import estimate
from secateur.pruning.experts import how_many_go
from secateur.pruning.fit import place_activations
from secateur.pruning.prepare import Prepared, prepare
from secateur.pruning.reuse import SharedWork
from secateur.recipe import Recipe
from secateur.sparsity import Structures

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Those that are measured where none are given."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class CliffPoint(_Part):
    """The model without some of its structures."""

    removed: int
    """How many are gone: of the model's blocks, or of what every block has."""
    gone: tuple[int, ...] | tuple[str, ...]
    """Which, counted from 0: blocks in the order of their choice; of others by block those that it
    lost, such as "0-3,7", empty where it had none."""
    perplexity: float
    """exp of the mean negative log-likelihood per predicted token."""
    standard_error: float | None
    """Standard error of the perplexity, from the spread over windows (first order); None of one
    window, as of every error here."""
    divergence: float
    """Mean KL divergence per predicted token from the dense model, in nats."""
    divergence_error: float | None
    """Its standard error over the windows."""
    loss_above_dense: float
    """Mean of the windows' losses less the dense model's, in nats per token."""
    loss_above_dense_error: float | None
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
    """How many of it the model has, or every block of it."""
    method: str
    """What chose them."""
    dense_perplexity: float
    """Perplexity of the dense model on the same windows."""
    dense_standard_error: float | None
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
        counts: how many structures go at every point, of the model or of every block, ascending.
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
    runs = _runs(settings, taken)
    removing = {
        how_many_go(run.source, structures, run.plan.multiple): run
        for run in runs
        if (structures := run.plan.structures) is not None
    }
    counts = sorted(removing)
    prepared = _with_room(removing[counts[-1]], len(counts))
    return CliffPlan(settings, prepared, tuple(counts), file)


def _runs(settings: CliffSettings, taken: Mapping[str, Any]) -> list[Prepared]:
    """The run of every share; where none are asked for, of those that the model can lose.

    Raises:
        SecateurError: something is wrong, or the model can lose none of them.
    """
    shared, asked = SharedWork(), settings.patterns()
    own = settings.model_dump(include={"model", "text", "samples", "windows"})
    own |= {**taken, "method": settings.chosen_method}
    runs: list[Prepared] = []
    refused: SecateurError | None = None
    for one in asked or [Structures(settings.pattern, share=share) for share in SHARES]:
        try:
            runs.append(prepare(Recipe.build({**own, "pattern": str(one)}), shared))
        except (PatternError, ModelError) as fault:
            if asked:
                raise
            refused = fault
    if refused is not None and not runs:
        raise refused
    return runs


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
        told.begin(f"{settings.chosen_method} {settings.pattern}", len(source.blocks))
        choices = plan.unit.choose(prepared, plan.counts, told.tick)
        dense, *others = plan.unit.leave_out(prepared, choices, told.tick)
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
        method=settings.chosen_method,
        dense_perplexity=dense,
        dense_standard_error=dense_error,
        points=tuple(_point(*values) for values in of_each),
        knee=None if knee is None else plan.counts[knee],
        knee_agreement=agreement,
        calibration=calibration.protocol if isinstance(calibration, TokenBatch) else None,
        heldout=plan.heldout.protocol,
        settings={**settings.model_dump(), "method": settings.chosen_method, **taken},
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
        removed=gone.lost,
        gone=gone.removed,
        perplexity=perplexity,
        standard_error=error,
        divergence=float(divergences.mean()),
        divergence_error=_error(divergences),
        loss_above_dense=float(above.mean()),
        loss_above_dense_error=_error(above),
    )


def _perplexity(losses: Tensor) -> tuple[float, float | None]:
    """The perplexity of windows' losses [windows], and its standard error (first order)."""
    perplexity, error = math.exp(float(losses.mean())), _error(losses)
    return perplexity, None if error is None else perplexity * error


def _error(values: Tensor) -> float | None:
    """Standard error of the mean of values by window [windows]; None of one window."""
    return standard_error(values) if len(values) > 1 else None
