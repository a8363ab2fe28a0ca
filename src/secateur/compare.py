"""The table of a paper in one call: every method at every pattern, for several seeds.

    OUT/runs/METHOD_PATTERN_seedN/run.json    one per run, written when it is finished
    OUT/runs/..._recovered/run.json           the same after training, if that was asked for
    OUT/table.md, table.csv, table.tex        all of them side by side
    OUT/report.html

What the runs have in common is made once: the opened model, the calibration and held-out tokens,
what the dense model makes of them, the first block's statistics, the full-model gradients. The
pruned models are measured as they arise and let go, unless they are to be kept: to be trained, or
asked zero-shot tasks. A run that is
finished is not repeated, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import methods
from secateur.checkpoint import locate
from secateur.errors import OutputError, RecipeError
from secateur.evaluation.text import evaluate_text
from secateur.evaluation.zero_shot import Answers, Questions
from secateur.machine.device import choose_device
from secateur.machine.facts import reset_peak_memory
from secateur.progress import Progress, Quiet
from secateur.pruning import pipeline
from secateur.pruning.prepare import check_fit
from secateur.pruning.reuse import Remembered
from secateur.recipe import Recipe
from secateur.record import RunRecord, add_to_record, read_record, write_record
from secateur.sparsity import parse_pattern

_OF_NO_MATTER = ("out", "overwrite", "save_gradients", "restart")
"""Of a recipe: what changes nothing in the result."""


@dataclass(frozen=True)
class Run:
    """One cell of the table, before or after it is done.

    Attributes:
        name: of its folder, such as "wanda_2of4_seed0".
        folder: where its record is to be, or is.
        recipe: what it does.
    """

    name: str
    folder: Path
    recipe: Recipe

    def finished(self) -> RunRecord | None:
        """Its record, if it has been done before; None if it is still to do.

        Raises:
            OutputError: the folder holds a run of another recipe.
            CheckpointError: its record cannot be read.
        """
        record = read_record(self.folder)
        if record is None or (self.recipe.out and not (self.folder / "config.json").is_file()):
            return None
        asked = self.recipe.spelled_out()
        defaults = Recipe.model_construct(model="").model_dump()  # of options newer than the run
        told = {**defaults, **record.recipe}
        for key in sorted((asked.keys() | told.keys()) - set(_OF_NO_MATTER)):
            if asked.get(key) != told.get(key):
                raise OutputError(
                    f"this run has {key} {told.get(key)!r}",
                    where=self.folder,
                    wanted=f"{asked.get(key)!r}, as asked now",
                    hint="another --out, or --overwrite to do it again",
                )
        return record


def plan_runs(
    out: Path,
    method_names: Sequence[str],
    patterns: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    *,
    keep_models: bool = False,
) -> list[Run]:
    """Every run of the comparison, in the order that shares most.

    Args:
        out: folder of the comparison.
        method_names, patterns, seeds: what to combine. Magnitude needs no calibration and so is
            the same for every seed: it runs for the first one only.
        options: every other key of a recipe; `text` must be among them.
        keep_models: write the pruned models too, beside their records.

    Raises:
        RecipeError, PatternError: something is unknown, missing or does not fit.
    """
    for what, given in (("method", method_names), ("pattern", patterns), ("seed", seeds)):
        if not given:
            raise RecipeError(f"no {what} to compare", wanted="at least one")
        if len(set(given)) < len(given):
            raise RecipeError(f"a {what} is named twice: {', '.join(map(str, given))}")
    if options.get("text") is None:
        raise RecipeError("no held-out text to measure on", hint="--text SOURCE")
    runs = []
    for seed in seeds:
        for method in method_names:
            if seed != seeds[0] and not methods.get(method).needs_calibration:
                continue
            for pattern in patterns:
                spelled = str(parse_pattern(pattern)).replace(":", "of").replace("%", "pct")
                name = f"{method}_{spelled}_seed{seed}"
                folder = out / "runs" / name
                values = {
                    **options,
                    "method": method,
                    "pattern": pattern,
                    "seed": seed,
                    "out": str(folder) if keep_models else None,
                }
                runs.append(Run(name, folder, Recipe.build(values)))
    return runs


def compare(
    runs: Sequence[Run], progress: Progress | None = None, *, overwrite: bool = False
) -> Iterator[tuple[Run, RunRecord, bool]]:
    """Do what is still to do, in turn; each run with its record and whether it was found done.

    Args:
        runs: of one comparison.
        progress: told what happens.
        overwrite: do everything again.

    Raises:
        SecateurError: a pattern does not fit the model, and nothing was done; or a run cannot be
            done, and those before it are finished and stay.
    """
    found = {} if overwrite else {run.name: run.finished() for run in runs}
    todo = [run for run in runs if found.get(run.name) is None]
    needs = frozenset[Any]().union(*(run.recipe.chosen_method.needs for run in todo))
    with tempfile.TemporaryDirectory() as scratch:
        shared = Remembered(Path(scratch), needs)
        for recipe in {run.recipe.pattern: run.recipe for run in todo}.values():
            check_fit(recipe, shared)
        for run in runs:
            record = found.get(run.name)
            if record is not None:
                yield run, record, True
                continue
            recipe = run.recipe
            if recipe.out is not None and run.folder.exists():
                recipe = recipe.model_copy(update={"overwrite": True})
            if overwrite:
                recipe = recipe.model_copy(update={"restart": True})
            reset_peak_memory(choose_device(recipe.device))
            record = pipeline.prune(recipe, progress, shared)
            if recipe.out is None:
                write_record(run.folder, record)
            yield run, record, False


def recover_all(
    runs: Sequence[Run],
    steps: int,
    objective: str,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> Iterator[tuple[Run, RunRecord, bool]]:
    """Train every pruned model back on its calibration text, into a folder beside its own.

    Args:
        runs: finished, their models kept.
        steps, objective: of the training, see `Recovery`.
        progress: told what happens.
        overwrite: do everything again.

    Raises:
        SecateurError: a model cannot be trained; those before it are finished and stay.
    """
    from secateur.recovery import (  # loads peft, which nothing else does
        Recovery,
        StateFile,
        recover,
    )

    for run in runs:
        recipe, name = run.recipe, f"{run.name}_recovered"
        folder = run.folder.with_name(name)
        settings = Recovery.build(
            {
                "model": str(run.folder),
                "out": str(folder),
                "text": recipe.calibration or recipe.text,
                "heldout": recipe.text,
                "windows": recipe.windows,
                "dense": recipe.model,
                "steps": steps,
                "objective": objective,
                "sequence_length": recipe.sequence_length,
                "seed": recipe.seed,
                "device": recipe.device,
                "trust_remote_code": recipe.trust_remote_code,
                "overwrite": overwrite,
                "resume": StateFile.beside(folder).exists and not overwrite,
            }
        )
        record = None if overwrite else read_record(folder)
        if record is None or record.recovery is None:
            record = recover(settings, progress)
            yield Run(name, folder, recipe), _measure_further(folder, record, recipe), False
            continue
        told, asked = record.recovery.settings, settings.spelled_out()
        for key in settings.identity():
            if told.get(key) != asked[key]:
                raise OutputError(
                    f"this recovery has {key} {told.get(key)!r}",
                    where=folder,
                    wanted=f"{asked[key]!r}, as asked now",
                    hint="another --out, or --overwrite to do it again",
                )
        yield Run(name, folder, recipe), _measure_further(folder, record, recipe), True


def _measure_further(folder: Path, record: RunRecord, recipe: Recipe) -> RunRecord:
    """The record of a recovered model with what it scores on further texts, as it was pruned."""
    recovery = record.recovery
    assert recovery is not None
    if [found.protocol.source for found in recovery.also] == recipe.also_text:
        return record
    also = tuple(
        evaluate_text(
            str(folder),
            text,
            sequence_length=recipe.sequence_length,
            windows=recipe.windows,
            together=recipe.batch_size,
            dtype="float32",  # as `recover` measures
            device=recipe.device,
            trust_remote_code=recipe.trust_remote_code,
        )
        for text in recipe.also_text
    )
    record = record.model_copy(update={"recovery": recovery.model_copy(update={"also": also})})
    write_record(folder, record)
    return record


def ask_all(
    finished: Iterable[tuple[Run, RunRecord, bool]],
    questions: Questions,
    progress: Progress | None = None,
) -> Iterator[tuple[Run, RunRecord, bool]]:
    """Ask the model of every run zero-shot tasks as it is finished; the dense model once for all.

    Args:
        finished: runs of one comparison, their models kept; what `compare` and `recover_all` give.
        questions: the tasks.
        progress: told what happens.

    Raises:
        SecateurError: as `finished` does, or a model cannot be asked; what was answered stays.
    """
    dense: Answers | None = None
    for run, record, repeated in finished:
        model = run.recipe.model
        if questions.asked_before(record.tasks, model):
            yield run, record, repeated
            continue
        with progress or Quiet() as shown:
            dense = dense or questions.ask(
                locate(model, trust_remote_code=questions.trust_remote_code), shown
            )
            answers = questions.ask(run.folder, shown)
        scored = questions.score(str(run.folder), answers, model, dense)
        yield run, add_to_record(run.folder, scored), False
