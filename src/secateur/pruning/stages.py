"""A run of several stages: each is a run of one stage on what the one before has left.

    .OUT.stages/identity.json     what the whole run is made of, as for a run of one stage
    .OUT.stages/dense.*           held-out windows behind the dense model
    .OUT.stages/stage-1, ...      what the stages before the last have left; removed at the end

A run that was interrupted finds the stages that are finished there and goes on within the next.
Measuring only does the same in a temporary folder, and a model in memory is changed stage by
stage. Calibration is read once, before the first stage, and so is what the windows of held-out
text are compared with: the model as it was before all of them. A stage that finishes, such as one
that trains the pruned model back, is somebody else's work: it is handed the folder of the stage
before it, which is measured. With other settings it goes on with the same folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secateur.checkpoint.destination import result_path
from secateur.checkpoint.durable import in_the_way, is_as_written, writing
from secateur.checkpoint.lock import alone_at
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.checkpoint.unfinished import IDENTITY
from secateur.errors import CheckpointError, RecipeError, told_within
from secateur.machine import processes
from secateur.machine.scratch import scratch_folder
from secateur.machine.waiting import doing
from secateur.progress import Progress
from secateur.pruning.dense_passes import Surroundings, follow
from secateur.pruning.prepare import Prepared, check_fit, prepare
from secateur.pruning.resume import identity
from secateur.pruning.reuse import SharedWork, Stopwatch
from secateur.recipe import Recipe
from secateur.recipe.differences import differences
from secateur.record import RunRecord, read_record


@dataclass(frozen=True)
class StageRun:
    """One stage, ready to be carried out.

    Attributes:
        prepared: its recipe and inputs.
        shared: what it has in common with the other stages.
        watch: its seconds.
        whole: what becomes of its record before it is written.
    """

    prepared: Prepared
    shared: SharedWork
    watch: Stopwatch
    whole: Callable[[RunRecord], RunRecord]


@dataclass(frozen=True)
class Unfinished:
    """What the stage that finishes goes on with.

    Attributes:
        pruned: folder of the model as the stages before have left it.
        between: folder for what must outlast an interruption of the run.
        whole: the record of the whole run, from that of the stage before it with what was added.
    """

    pruned: Path
    between: Path
    whole: Callable[[RunRecord], RunRecord]


CarryOut = Callable[[StageRun], RunRecord]
"""Does a run whose inputs are prepared, and gives its record."""
Finish = Callable[[Unfinished], RunRecord]
"""Does the last stage of a recipe, if it is one that finishes."""


def prune_in_stages(
    recipe: Recipe, progress: Progress, carry_out: CarryOut, finish: Finish | None = None
) -> RunRecord:
    """Do the stages of a recipe one after the other, from a model on disk.

    Args:
        recipe: what to do.
        progress: told what happens.
        carry_out: does one stage.
        finish: does the last stage; None if it prunes like the others.

    Raises:
        SecateurError: something does not fit, or could not be read, done or written. Stages that
            are finished are kept, and the next run of the same recipe goes on after them.
    """
    assert recipe.stages[-1].finishes == (finish is not None)
    shared, records = SharedWork(), list[RunRecord]()
    with _folder_between(recipe, progress) as between:
        _begin(recipe, between, shared, progress)
        model, revision = recipe.model, recipe.revision
        for number, one in enumerate(recipe.by_stage[:-1], 1):
            folder = between / f"stage-{number}"
            measured = finish is not None and number == len(recipe.stages) - 1
            stage = _within(one, measured=measured).model_copy(
                update={"model": model, "revision": revision, "out": str(folder)}
            )
            with told_within(f"stage {number}", _names_of(between)):
                record = processes.from_first(partial(read_record, folder))
                if record is None:
                    record = carry_out(_prepared(stage, _for_stage(shared, measured=measured)))
                else:
                    _verify(record, folder)
                    told = "was finished by an earlier run: going on after it"
                    progress.notice(f"stage {number} {told}")
            records.append(record)
            model, revision = str(folder), None
        with told_within(f"stage {len(recipe.stages)}", _names_of(between)):
            if finish is not None:
                before = records[:-1]
                return finish(
                    Unfinished(Path(model), between, lambda one: _joined(recipe, [*before, one]))
                )
            last = recipe.by_stage[-1].model_copy(update={"model": model, "revision": revision})
            run = _prepared(last, _for_stage(shared, measured=True))
            return carry_out(replace(run, whole=lambda record: _joined(recipe, [*records, record])))


def _names_of(between: Path) -> dict[str, str]:
    """The folder between the stages, of which nobody knows, and what to call it."""
    return {f"{between}{os.sep}": "the result of "}


def prune_in_memory(
    recipe: Recipe, stages: Sequence[Prepared], progress: Progress, carry_out: CarryOut
) -> RunRecord:
    """Do the stages of a recipe one after the other, on a model in memory.

    Args:
        recipe: what to do.
        stages: prepared while the model was dense.
        progress: told what happens.
        carry_out: does one stage.

    Raises:
        SecateurError: something does not fit; what is pruned stays pruned.
    """
    shared, records = SharedWork(), list[RunRecord]()
    with progress, scratch_folder() as scratch:
        surroundings = Surroundings(progress, shared, Stopwatch(), scratch, outlasts=False)
        follow(stages[-1], surroundings)  # `shared` remembers the windows behind the dense model
    for prepared in stages[:-1]:
        unmeasured = replace(prepared, heldout=())
        records.append(
            carry_out(StageRun(unmeasured, SharedWork(), Stopwatch(), lambda record: record))
        )
    return carry_out(
        StageRun(
            stages[-1],
            _for_stage(shared, measured=True),
            Stopwatch(),
            lambda record: _joined(recipe, [*records, record]),
        )
    )


@contextmanager
def _folder_between(recipe: Recipe, progress: Progress) -> Iterator[Path]:
    """The folder for what stands between the stages; an error leaves it if a stage is in it."""
    if recipe.out is None:
        with scratch_folder() as scratch:
            yield processes.from_first(lambda: scratch)
            processes.wait()
        return
    out = result_path(recipe.out)
    between = out.parent / f".{out.name}.stages"
    if processes.first():
        with writing(between):
            between.parent.mkdir(parents=True, exist_ok=True)
        with alone_at(between):
            try:
                yield between
                processes.wait()
            except BaseException:
                if _is_ours(between) and not any(between.glob("*stage-*")):
                    shutil.rmtree(between, ignore_errors=True)
                elif _is_ours(between):
                    progress.notice(
                        f"what the stages have left is kept in {between}: the same command goes on"
                        " from there, --restart gives it up"
                    )
                raise
            shutil.rmtree(between, ignore_errors=True)
    else:
        yield between
        processes.wait()


def _begin(recipe: Recipe, between: Path, shared: SharedWork, progress: Progress) -> None:
    """Check every stage on what those before it leave, and read or make what they share.

    Raises:
        SecateurError: a stage does not fit the model, or the folder holds stages of another run.
    """
    check_fit(recipe, shared)
    first = prepare(recipe.by_stage[0], shared)
    pruning = tuple(stage for stage in recipe.stages if not stage.finishes)
    facts = identity(replace(first, recipe=recipe.model_copy(update={"stages": pruning})))
    if processes.first():
        _continue_or_begin(recipe, between, facts, progress)
    processes.wait()
    with progress:
        outlasts = recipe.out is not None
        follow(first, Surroundings(progress, shared, Stopwatch(), between, outlasts))


def _continue_or_begin(
    recipe: Recipe, between: Path, facts: dict[str, object], progress: Progress
) -> None:
    """Leave in the folder what is of this run, or nothing."""
    path = between / IDENTITY
    if os.path.lexists(between) and not _is_ours(between):
        raise in_the_way(between)
    if recipe.restart:
        shutil.rmtree(between, ignore_errors=True)
    if path.is_file():
        if differing := differences(facts, read_facts(path)):
            raise RecipeError(
                f"an unfinished run of stages had {' | '.join(map(str, differing))}",
                where=between,
                hint="the same command as before to continue it, --restart to give it up, or"
                " another --out",
            )
        return
    with writing(between):
        between.mkdir(parents=True, exist_ok=True)
    write_facts(path, facts)


def _is_ours(between: Path) -> bool:
    """Whether a run of stages has made the folder: it is empty, or says what it is of."""
    if between.is_symlink() or not between.is_dir():
        return False
    return (between / IDENTITY).is_file() or not any(between.iterdir())


@doing("hashing a finished stage")
def _verify(record: RunRecord, folder: Path) -> None:
    """Compare the files that a stage has left with their checksums.

    Raises:
        CheckpointError: one is not what was written.
    """
    for name, checksum in record.files.items():
        if not is_as_written(folder / name, checksum):
            raise CheckpointError(
                f"{name} of a finished stage is not as it was written",
                where=folder,
                hint="--restart",
            )


def _within(recipe: Recipe, *, measured: bool) -> Recipe:
    """A stage before the last, whose folder is nobody's but this run's."""
    heldout = {"text": recipe.text, "also_text": recipe.also_text} if measured else {}
    return recipe.model_copy(update={"text": None, "also_text": [], "overwrite": False, **heldout})


def _prepared(recipe: Recipe, shared: SharedWork) -> StageRun:
    watch = Stopwatch()
    return StageRun(prepare(recipe, shared, watch), shared, watch, lambda record: record)


def _for_stage(shared: SharedWork, *, measured: bool) -> SharedWork:
    """What a stage has in common with the others; what depends on the weights is its own."""
    own = SharedWork()
    own.calibration = shared.calibration
    if measured:
        own.heldout, own.dense = shared.heldout, shared.dense
    return own


def _joined(recipe: Recipe, records: Sequence[RunRecord]) -> RunRecord:
    """The record of a run, made of the records of its stages."""
    last = records[-1]
    device_memory = [record.peak_device_memory_bytes for record in records]
    return last.model_copy(
        update={
            "settings": recipe.run_options(),
            "commit": records[0].commit,
            "source_files": records[0].source_files,
            "stages": tuple(stage for record in records for stage in record.stages),
            "seconds": sum(record.seconds for record in records),
            "peak_memory_bytes": max(record.peak_memory_bytes for record in records),
            "peak_device_memory_bytes": max(
                (amount for amount in device_memory if amount is not None), default=None
            ),
        }
    )
