"""A comparison from end to end: settings -> runs, done one after the other -> records.

plan       every run and every question is checked before any work
prune      what is still to do, in the order that shares most
recover    every pruned model trained back, if that was asked for
ask        zero-shot tasks, of the dense model once and of every other
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.comparison.afterwards import ask_all, recover_all
from secateur.comparison.combinations import left_out, plan_runs
from secateur.comparison.runs import Run, refuse_folder, run_comparison
from secateur.comparison.settings import ComparisonSettings, refuse_unused
from secateur.errors import RecipeError
from secateur.evaluation import EvaluationSettings
from secateur.evaluation.zero_shot import Questions
from secateur.progress import Progress, Quiet
from secateur.recipe.wording import name_of
from secateur.record import RunRecord


@dataclass(frozen=True)
class FinishedRun:
    """One run of a comparison, as it is done.

    Attributes:
        name: of its folder, such as "wanda_2of4_seed0".
        record: what it did.
        repeated: it had been done before, and was not done again.
        number, total: it is the number-th of so many, from 1.
    """

    name: str
    record: RunRecord
    repeated: bool
    number: int
    total: int


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that can be done.

    Attributes:
        settings: what is compared, and what is done beside pruning.
        runs: in the order in which they are done.
        questions: zero-shot tasks, loaded; None if none are asked.
        notices: what the user should know.
    """

    settings: ComparisonSettings
    runs: tuple[Run, ...]
    questions: Questions | None
    notices: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many records there will be."""
        return len(self.runs) * (1 if self.settings.recover is None else 2)


def plan_comparison(settings: ComparisonSettings, shared: Mapping[str, Any]) -> ComparisonPlan:
    """Check everything that can be checked without work on the model.

    Args:
        settings: what is compared.
        shared: what the recipes of all runs share, see `settings.shared_keys`.

    Raises:
        SecateurError: something is unknown, missing, or does not fit; or a task cannot be read.
    """
    refuse_folder(Path(settings.out), shared.get("model"))
    classifier = shared.get("images") is not None  # nothing is measured as it passes: it is written
    trained_or_asked = settings.recover is not None or settings.tasks is not None
    if trained_or_asked and classifier:
        raise RecipeError(
            "recover and tasks are for language models", wanted="neither of them with images"
        )
    if settings.recover is not None and any(settings.chosen_schemes):
        raise RecipeError(
            f"{name_of('recover')} would train weights off the grid of {name_of('quantize')}",
            wanted="one of the two",
        )
    refuse_unused(settings, shared)
    runs = plan_runs(settings, shared, keep_models=settings.writes_models or classifier)
    questions = None
    if settings.tasks is not None:
        recipe = runs[0].recipe
        asked = EvaluationSettings(
            model=recipe.model,
            revision=recipe.revision,
            tasks=settings.tasks,
            text=recipe.text,
            include_path=settings.include_path,
            limit=settings.limit,
            bos=recipe.bos,
            batch_size=recipe.batch_size,
            dtype=recipe.dtype,
            device=recipe.device,
            trust_remote_code=recipe.trust_remote_code,
        )
        questions = Questions(asked)
    return ComparisonPlan(settings, tuple(runs), questions, tuple(left_out(settings, shared)))


def do_comparison(plan: ComparisonPlan, progress: Progress | None = None) -> Iterator[FinishedRun]:
    """Do what is still to do, and give every run as it is done.

    Raises:
        SecateurError: a run cannot be done; those before it are finished and stay.
    """
    settings, progress = plan.settings, progress or Quiet()
    for line in plan.notices:
        progress.notice(line)
    done = run_comparison(plan.runs, progress, overwrite=settings.overwrite)
    if settings.recover is not None:
        recovered = recover_all(
            plan.runs, settings.recover, settings.objective, progress, overwrite=settings.overwrite
        )
        done = itertools.chain(done, recovered)
    if plan.questions is not None:
        done = ask_all(done, plan.questions, progress)
    number = 0
    try:
        for number, (run, record, repeated) in enumerate(done, 1):
            yield FinishedRun(run.name, record, repeated, number, plan.total)
    except BaseException:
        if number:
            progress.notice(
                f"{number} of {plan.total} runs are done: the same command goes on after them"
            )
        raise
