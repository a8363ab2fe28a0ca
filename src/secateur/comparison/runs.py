"""The table of a paper in one call: every method at every pattern, for several seeds.

    OUT/runs/METHOD_PATTERN_seedN/run.json    one per run, written when it is finished; a scheme
                                              stands behind the pattern: 2of4_w4a16-g64
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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.checkpoint.claim import refuse_place
from secateur.checkpoint.destination import result_path
from secateur.checkpoint.durable import writing
from secateur.checkpoint.lock import alone_at
from secateur.comparison.finished import bos_decides, refuse_another
from secateur.errors import CheckpointError, OutputError
from secateur.machine.device import choose_device
from secateur.machine.facts import reset_peak_memory
from secateur.machine.paths import as_path
from secateur.machine.scratch import scratch_folder
from secateur.machine.waiting import doing
from secateur.progress import Progress
from secateur.pruning import pipeline
from secateur.pruning.prepare import check_fit, source_files
from secateur.pruning.reuse import SharedWork
from secateur.recipe import Recipe, plan_of
from secateur.recipe.differences import deciding
from secateur.record import RunRecord, read_record, write_record
from secateur.statistics import Need

RUNS = "runs"
"""Folder of the runs, in that of a comparison."""


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

        The model counts by its name only where the record does not know its files, and where BOS
        stands only if that decides anything.

        Raises:
            OutputError: the folder holds a run of another recipe.
            CheckpointError: its record cannot be read.
        """
        record = read_record(self.folder)
        if record is None or (self.recipe.out and not (self.folder / "config.json").is_file()):
            return None
        asked, told = (deciding(Recipe, of) for of in (self.recipe.spelled_out(), record.recipe))
        if record.source_files:
            for facts in (asked, told):
                for name in ("model", "revision"):
                    facts.pop(name, None)
        if asked["bos"] != told.get("bos") and not bos_decides(record, self.recipe):
            told["bos"] = asked["bos"]
        refuse_another(asked, told, self.folder)
        return record


def refuse_folder(out: Path, model: object) -> None:
    """Raise if a comparison cannot be written to a folder: it is a file, or a model's folder.

    Args:
        out: the folder.
        model: what is compared, a folder or any other name.

    Raises:
        OutputError: it is one, or lies in the folder of the model.
    """
    wanted = "a new folder, or that of an earlier comparison"
    folder = result_path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError("the comparison's folder is a file", where=out, wanted=wanted)
    if (folder / "config.json").is_file():
        raise OutputError("a model lies in the comparison's folder", where=out, wanted=wanted)
    source = as_path(str(model), fault=CheckpointError)
    if source.is_dir() and folder.is_relative_to(source.resolve()):
        raise OutputError("the folder lies in that of the model", where=out, wanted=wanted)
    refuse_place(folder / RUNS)


def run_comparison(
    runs: Sequence[Run], progress: Progress | None = None, *, overwrite: bool = False
) -> Iterator[tuple[Run, RunRecord, bool]]:
    """Do what is still to do, in turn; each run with its record and whether it was done before.

    Args:
        runs: of one comparison.
        progress: told what happens.
        overwrite: do everything again.

    Raises:
        SecateurError: a pattern does not fit the model, and nothing was done; or a run cannot be
            done, and those before it are finished and stay.
    """
    finished = {} if overwrite else {run.name: run.finished() for run in runs}
    todo = [run for run in runs if finished.get(run.name) is None]
    for run in todo:
        if run.recipe.out is None:
            _refuse_model(run.folder)
    needs = frozenset[Need]().union(*(plan_of(run.recipe).method.needs for run in todo))
    with scratch_folder() as scratch:
        shared = SharedWork(scratch, needs)
        _refuse_another_source(runs, finished, shared)
        for recipe in {run.recipe.pattern: run.recipe for run in todo}.values():
            check_fit(recipe, shared)
        for run in runs:
            record = finished.get(run.name)
            if record is not None:
                yield run, record, True
                continue
            recipe = run.recipe
            began = (run.folder / "run.json").is_file()  # without its model, or by another recipe
            if recipe.out is not None and (overwrite or began):
                recipe = recipe.model_copy(update={"overwrite": True})
            if overwrite:
                recipe = recipe.model_copy(update={"restart": True})
            reset_peak_memory(choose_device(recipe.device))
            with doing(run.name):
                if recipe.out is None:
                    record = _measure_alone(run, progress, shared, overwrite=overwrite)
                else:
                    record = pipeline.run_pruning(recipe, progress, shared)
            yield run, record, False


def _refuse_model(folder: Path) -> None:
    if (folder / "config.json").is_file():
        raise OutputError(
            "a model lies where a record alone would be written",
            where=folder,
            hint="--keep-models, or another --out",
        )


def _refuse_another_source(
    runs: Sequence[Run], finished: Mapping[str, RunRecord | None], shared: SharedWork
) -> None:
    """Raise unless the model is the one that the finished runs read, every byte of it.

    It is not read where nothing is left to do with a model of the same name.

    Raises:
        OutputError: it is another.
    """
    recipe = runs[0].recipe
    done = [record for record in finished.values() if record is not None]
    settled = len(done) == len(runs) and recipe.out is None
    if settled and all(record.settings["model"] == recipe.model for record in done):
        return
    if not any(record.source_files for record in done):
        return
    files = source_files(recipe, shared)
    for run in runs:
        if (record := finished.get(run.name)) is not None and record.source_files:
            asked, told = (
                {f"source file {name}": digest for name, digest in each.items()}
                for each in (files, record.source_files)
            )
            refuse_another(asked, told, run.folder)


def _measure_alone(
    run: Run, progress: Progress | None, shared: SharedWork, *, overwrite: bool
) -> RunRecord:
    """Do a run of which only the record is kept, while nobody else writes in its folder.

    Raises:
        SecateurError: it cannot be done, or somebody has written there since the comparison began.
    """
    with writing(run.folder):
        run.folder.parent.mkdir(parents=True, exist_ok=True)
    with alone_at(run.folder):
        _refuse_model(run.folder)
        if not overwrite and (run.folder / "run.json").exists():
            raise OutputError(
                "another run was written here meanwhile",
                where=run.folder,
                hint="the same command again",
            )
        record = pipeline.run_pruning(run.recipe, progress, shared)
        write_record(run.folder, record)
    return record
