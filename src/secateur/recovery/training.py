"""The training loop: steps, their rate, evaluations, checkpoints, and the state that was best.

    rate(s) = peak * s / warm_up                                             while s <= warm_up
              peak * (1 + cos(pi (s - 1 - warm_up) / (steps - warm_up))) / 2      after that

`s` counts from 1. The loop is written out because what matters here, going on from a kill to the
same result and judging by the very weights of the merge, is easier to read in sixty lines than to
hang into a trainer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from secateur.blocks.models_fault import models_fault
from secateur.errors import NumericalError
from secateur.machine.waiting import doing
from secateur.progress import Progress
from secateur.record import RecoveryPoint
from secateur.recovery.objective import Forward, Objective, language_model_loss
from secateur.recovery.prepare import PreparedRecovery
from secateur.recovery.resume import InterruptedRecovery, Position, part, remembered, remind
from secateur.recovery.settings import Recovery

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Trainable(Protocol):
    """A model, and what of it is trained."""

    base: PreTrainedModel
    """The model itself."""
    factors: dict[str, nn.Parameter]
    """By name, float32; what follows from them is how the model computes."""

    def __call__(self, **inputs: Any) -> Any:
        """Named inputs -> the output of the model."""

    def parameters(self) -> int:
        """How many numbers are trained; those of a pruned weight are none."""

    def stored(self) -> dict[str, Tensor]:
        """Parameters of the model by name, as they will be stored."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training; the model holds the best state.

    Attributes:
        curve: every evaluation, the first before training.
        steps: number of steps that were done.
        best: the evaluation whose state was kept.
        interruptions: how often the run went on from a checkpoint.
        seconds: wall time of the training, interruptions left out.
    """

    curve: tuple[RecoveryPoint, ...]
    steps: int
    best: RecoveryPoint
    interruptions: int
    seconds: float


class _Run:
    """One training run: what changes from step to step, and how it is kept."""

    def __init__(
        self, factors: dict[str, nn.Parameter], settings: Recovery, state: InterruptedRecovery
    ) -> None:
        self.factors, self.settings, self.state = factors, settings, state
        self.optimizer = torch.optim.AdamW(
            self.factors.values(),
            lr=settings.chosen_learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step = 0
        self.curve: list[RecoveryPoint] = []
        self.best = self.snapshot()
        self.before, self.interruptions = 0.0, 0
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    @property
    def best_point(self) -> RecoveryPoint:
        return min(self.curve, key=lambda point: point.validation_loss)

    @property
    def out_of_patience(self) -> bool:
        since = len(self.curve) - 1 - self.curve.index(self.best_point)
        return self.settings.patience is not None and since >= self.settings.patience

    def snapshot(self) -> dict[str, Tensor]:
        return {name: factor.detach().cpu().clone() for name, factor in self.factors.items()}

    def fill(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, factor in self.factors.items():
                factor.copy_(tensors[name])

    def descend(self) -> None:
        """One step along the gradients that the batches of the step have left; they are let go."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step + 1, self.settings)
        nn.utils.clip_grad_norm_(self.factors.values(), self.settings.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def note(self, loss: float | None, validation: float) -> None:
        """An evaluation: on the curve, and the best state if it is the best."""
        rate = rate_at(self.step, self.settings)
        self.curve.append(
            RecoveryPoint(
                step=self.step,
                loss=loss,
                validation_loss=validation,
                learning_rate=rate,
                seconds=self.seconds,
            )
        )
        if self.best_point is self.curve[-1]:
            self.best = self.snapshot()

    def save(self, identity: dict[str, Any]) -> None:
        position = Position(
            identity=identity, step=self.step, curve=tuple(self.curve), seconds=self.seconds,
            interruptions=self.interruptions,
        )  # fmt: skip
        moments = remembered(self.optimizer, list(self.factors))
        self.state.save(position, self.snapshot(), self.best, moments)

    def go_on(self, identity: dict[str, Any]) -> None:
        position, tensors = self.state.load(identity)
        self.state.check_fits(tensors, self.factors, position.step)
        self.fill(part(tensors, "adapter"))
        self.best = part(tensors, "best")
        remind(self.optimizer, list(self.factors), part(tensors, "optimizer"))
        self.step, self.curve = position.step, list(position.curve)
        self.before, self.interruptions = position.seconds, position.interruptions + 1


def train(
    model: Trainable, objective: Objective, prepared: PreparedRecovery, progress: Progress
) -> Trained:
    """Train the factors of a model and leave it with the best of them.

    Args:
        model: only its factors take gradients. In evaluation mode throughout: no dropout.
        objective: what is made small.
        prepared: the settings, the sequences, where checkpoints go, where to compute.
        progress: told of every step and evaluation.

    Raises:
        NumericalError: the loss is not finite.
        SecateurError: a checkpoint cannot be written, or not be gone on from.
    """
    settings, device = prepared.settings, prepared.device
    validation = prepared.validation
    identity = prepared.identity()
    run = _Run(model.factors, settings, prepared.state)
    if settings.resume:
        run.go_on(identity)
        progress.notice(f"going on after step {run.step} of {settings.steps}")
    model.base.eval()
    trained = in_precision(model, torch.bfloat16 if prepared.half else None, device)
    interval, losses = settings.chosen_interval, list[float]()
    progress.begin("recover", math.ceil(settings.steps / interval))
    for point in run.curve[1:]:
        progress.block(step=point.step, validation=round(point.validation_loss, 4))
    if not run.curve:
        run.note(None, judge(trained, validation, settings, device))
    while run.step < settings.steps and not run.out_of_patience:
        terms = []
        for batch in batches_of(run.step, prepared.training, settings):
            term = objective(trained, batch.to(device))
            (term / settings.accumulation).backward()  # type: ignore[no-untyped-call]
            terms.append(term.detach())
        run.descend()
        loss = 0.0
        for of_batch in torch.stack(terms).tolist():  # the only look of a step
            loss += of_batch / settings.accumulation
        if not math.isfinite(loss):
            raise NumericalError(
                "the loss is not finite", where=f"step {run.step}", hint="a lower learning rate"
            )
        losses.append(loss)
        progress.tick(f"loss {loss:.3f}", (run.step - 1) % interval + 1, interval)
        if run.step % interval == 0 or run.step == settings.steps:
            run.note(sum(losses) / len(losses), judge(trained, validation, settings, device))
            losses.clear()
            run.save(identity)
            _tell(run, progress)
    run.fill(run.best)
    return Trained(tuple(run.curve), run.step, run.best_point, run.interruptions, run.seconds)


def in_precision(model: Trainable, dtype: torch.dtype | None, device: torch.device) -> Forward:
    """The model, multiplying in `dtype` where torch holds that to be safe; None leaves it alone."""

    name = type(model.base).__name__

    def forward(**inputs: Any) -> Any:
        with torch.autocast(device.type, dtype, enabled=dtype is not None), models_fault(name):
            return model(**inputs)

    return forward


def rate_at(step: int, settings: Recovery) -> float:
    """The learning rate of a step, counted from 1."""
    warm_up, peak = settings.chosen_warm_up, settings.chosen_learning_rate
    if step <= warm_up:
        return peak * step / warm_up if warm_up else peak
    share = (step - 1 - warm_up) / (settings.steps - warm_up)
    return peak * (1 + math.cos(math.pi * share)) / 2


@doing("judging on the validation sequences")
@torch.no_grad()
def judge(model: Forward, validation: Tensor, settings: Recovery, device: torch.device) -> float:
    """Mean negative log-likelihood per token of sequences [sequences, tokens], in nats.

    Raises:
        NumericalError: it is not finite.
    """
    batches = torch.split(validation, settings.batch_size)
    # One look for all batches: each look would wait for the accelerator.
    losses = torch.stack([language_model_loss(model, batch.to(device)) for batch in batches])
    total = 0.0
    for loss, batch in zip(losses.tolist(), batches, strict=True):
        total += loss * len(batch)
    if not math.isfinite(total):
        raise NumericalError(
            "the likelihood is not finite",
            where="the validation sequences",
            hint="a lower learning rate, or another copy of the model",
        )
    return total / len(validation)


def batches_of(step: int, sequences: Tensor, settings: Recovery) -> tuple[Tensor, ...]:
    """The batches of a step, counted from 0: they follow from seed and step alone.

    Args:
        step: how many were done before.
        sequences: int64 [sequences, tokens]; each comes once before any comes again.
        settings: of the recovery.

    Returns:
        `accumulation` batches, each int64 [batch_size, tokens].
    """
    count, each = len(sequences), settings.batch_size * settings.accumulation
    places = torch.arange(step * each, (step + 1) * each)
    rounds = [
        torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed + turn))
        for turn in range(int(places[0]) // count, int(places[-1]) // count + 1)
    ]
    order = torch.cat(rounds)[places - int(places[0]) // count * count]  # [each]
    return torch.split(sequences[order], settings.batch_size)


def _tell(run: _Run, progress: Progress) -> None:
    point = run.curve[-1]
    per_step = run.seconds / run.step
    progress.block(
        step=run.step,
        loss=None if point.loss is None else round(point.loss, 4),
        validation=round(point.validation_loss, 4),
        perplexity=round(math.exp(point.validation_loss), 4),
        best_step=run.best_point.step,
        rate=point.learning_rate,
        seconds_left=round(per_step * (run.settings.steps - run.step), 1),
    )
