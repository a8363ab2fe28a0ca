"""What is done with the finished runs of a comparison: trained back, and asked zero-shot tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from secateur.checkpoint import locate
from secateur.comparison.finished import bos_decides, refuse_another
from secateur.comparison.runs import Run
from secateur.evaluation.zero_shot import Answers, Questions
from secateur.machine.paths import pinned
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet
from secateur.recipe.differences import deciding, with_defaults
from secateur.record import RunRecord, add_to_record, read_record
from secateur.recovery import InterruptedRecovery, Recovery, measure_further, run_recovery


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
    for run in runs:
        recipe, name = run.recipe, f"{run.name}_recovered"
        folder = run.folder.with_name(name)
        settings = Recovery.build(
            {
                "model": str(run.folder),
                "out": str(folder),
                "text": list(recipe.sources) or recipe.text,
                "shares": recipe.shares,
                "column": recipe.column if recipe.calibration else None,
                "heldout": recipe.text,
                "windows": recipe.windows,
                "dense": pinned(recipe.model, recipe.revision),
                "steps": steps,
                "objective": objective,
                "sequence_length": recipe.sequence_length,
                "bos": recipe.bos,
                "seed": recipe.seed,
                "device": recipe.device,
                "trust_remote_code": recipe.trust_remote_code,
                "overwrite": overwrite,
                "resume": InterruptedRecovery.beside(folder).exists and not overwrite,
            }
        )
        record = None if overwrite else read_record(folder)
        if record is None or record.recovery is None:
            with doing(name):
                record = run_recovery(settings, progress)
            record = measure_further(folder, record, recipe, progress)
            yield Run(name, folder, recipe), record, False
            continue
        told = with_defaults(Recovery, record.recovery.settings)
        asked = deciding(Recovery, settings.spelled_out())
        if told["bos"] != settings.bos and not bos_decides(record, recipe):
            told["bos"] = settings.bos
        refuse_another(asked, deciding(Recovery, told), folder)
        yield Run(name, folder, recipe), measure_further(folder, record, recipe, progress), True


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
        model = pinned(run.recipe.model, run.recipe.revision)
        if questions.asked_before(record.tasks, model):
            yield run, record, repeated
            continue
        with progress or Quiet() as told:
            dense = dense or questions.ask(
                locate(model, trust_remote_code=questions.trust_remote_code), told
            )
            answers = questions.ask(run.folder, told)
        scored = questions.score(str(run.folder), answers, model, dense)
        yield run, add_to_record(run.folder, scored, record), False
