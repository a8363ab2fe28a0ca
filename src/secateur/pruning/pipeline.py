"""The whole story of a run, in order: a newcomer starts here.

prepare     the recipe's model and texts are opened, read and checked           (prepare.py)
open        the result folder begins, or goes on with an unfinished run         (result.py)
make ready  what needs the dense model: ratios, held-out windows, gradients     (dense_passes.py)
sweep       blocks are pruned one after the other, and handed over              (blocks/sweep.py)
record      everything that was done and measured, beside the weights           (record/)

Pruning into a folder, only measuring, and pruning a model in memory are the same story: they
differ in where the inputs come from and where the blocks go. A recipe of several stages is the
story told once for each (stages.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from secateur.blocks.block_result import BlockResult
from secateur.blocks.sweep import sweep
from secateur.checkpoint import commit_of
from secateur.checkpoint.in_memory import check_in_memory, uncompiled
from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.machine.accelerator import peak_bytes_of
from secateur.machine.facts import machine, now, peak_memory_bytes, repeatability, versions
from secateur.progress import Progress, Quiet
from secateur.pruning.dense_passes import ReadyRun, Surroundings, make_ready
from secateur.pruning.prepare import prepare, prepare_in_place
from secateur.pruning.quantise import packed_weight_bytes, weight_bytes
from secateur.pruning.result import Result, open_result
from secateur.pruning.reuse import SharedWork, Stopwatch
from secateur.pruning.stages import Finish, StageRun, prune_in_memory, prune_in_stages
from secateur.recipe import Recipe
from secateur.record import BlockRecord, MatrixRecord, RunRecord, StageRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_pruning(
    recipe: Recipe,
    progress: Progress | None = None,
    shared: SharedWork | None = None,
    finish: Finish | None = None,
) -> RunRecord:
    """Prune the model of a recipe into the recipe's folder; without one, only measure it.

    Args:
        recipe: what to do.
        progress: told what happens.
        shared: what the runs of a comparison have in common.
        finish: does the last stage, if the recipe has one that does not prune.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left, but
            finished blocks are, and the next run of the same recipe goes on after them.
    """
    watch = Stopwatch()
    if recipe.out is None and recipe.text is None:
        raise RecipeError(
            "no folder for the result", hint="--out FOLDER, or --text SOURCE to measure only"
        )
    progress, shared = progress or Quiet(), shared or SharedWork()
    if recipe.stages:
        return prune_in_stages(recipe, progress, partial(_carry_out, progress), finish)
    run = StageRun(prepare(recipe, shared, watch), shared, watch, lambda record: record)
    return _carry_out(progress, run)


def prune_in_place(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens: Tensor | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Prune a model in memory; it keeps its device and dtype.

    Args:
        model: changed in place.
        recipe: what to do; its `out` is not used.
        tokenizer: for calibration text.
        tokens: int64 [sequences, tokens] in place of the recipe's calibration source; of a
            classifier float [images, channels, height, width].
        progress: told what happens.

    Raises:
        SecateurError: something does not fit; blocks already pruned stay pruned.
    """
    watch, progress = Stopwatch(), progress or Quiet()
    check_in_memory(model)
    if recipe.every_stage[-1].finishes:
        raise RecipeError(
            f"{recipe.every_stage[-1].kind} goes on with a folder, and the model is in memory",
            hint="saving the model, and the same stages on its folder",
        )
    with uncompiled():
        stages = [prepare_in_place(model, one, tokenizer, tokens) for one in recipe.by_stage]
        if recipe.stages:
            return prune_in_memory(recipe, stages, progress, partial(_carry_out, progress))
        run = StageRun(stages[0], SharedWork(), watch, lambda record: record)
        return _carry_out(progress, run)


def _carry_out(progress: Progress, stage: StageRun) -> RunRecord:
    """Do a stage whose inputs are prepared, from its first pass over the model to its record."""
    prepared = stage.prepared
    watched = prepared.source.watch()
    with progress, open_result(prepared, progress.notice) as result:
        surroundings = Surroundings(
            progress, stage.shared, stage.watch, result.scratch, result.outlasts
        )
        run = make_ready(prepared, surroundings, done=len(result.finished))
        result.go_on(run)
        blocks = [*result.finished, *_prune_blocks(run, result)]
        for line in _told_of_mending(prepared.recipe, blocks):
            progress.notice(line)
        files = result.complete(run)
        if watched is not None:
            watched.read_all()  # the record names every file whole
            watched.check()
        record = _record(run, blocks, result, files)
        record = record.model_copy(update={"source_files": watched.sums() if watched else {}})
        record = stage.whole(record)
        result.finish(record)
    return processes.from_first(lambda: record)


def _prune_blocks(run: ReadyRun, result: Result) -> list[BlockRecord]:
    """Prune what is not finished yet, block by block, and hand each over; their records."""
    source, recipe, progress = run.prepared.source, run.prepared.recipe, run.surroundings.progress
    for line in run.prepared.notices:
        progress.notice(line)
    progress.begin(f"{recipe.method} {recipe.pattern}", len(source.blocks))
    records = []
    told: set[str] = set()  # what is so in every block is said once
    for block in sweep(run.inputs, run.done):
        if run.following is not None:
            progress.tick("held out", 0, 1)
            run.following.advance(source.blocks.modules[block.index], block.index)
        records.append(_record_block(block))
        result.take(run, block, records[-1])
        block.rounded.clear()
        block.changed.clear()  # the result has it by now, and the next block needs the room
        for line in dict.fromkeys(block.notices):
            if line not in told:
                progress.notice(line)
        told.update(block.notices)
        progress.block(
            block=block.index,
            blocks=len(source.blocks),
            sparsity=_sparsity(block),
            output_error=block.output_error,
            seconds={name: round(value, 3) for name, value in block.seconds.items()},
        )
    return records


def _told_of_mending(recipe: Recipe, blocks: Sequence[BlockRecord]) -> tuple[str, ...]:
    """A line if the blocks that are left were to be mended, and none is better than it was."""
    judged = [block.judged for block in blocks if block.judged is not None]
    if not recipe.mend or not judged or any(after < before for before, after in judged):
        return ()
    return ("mending changed nothing: in no block did its steps make the error smaller",)


def _sparsity(block: BlockResult) -> float:
    """The share of zeros in the matrices of a block, to six digits."""
    zeros = sum(audit.zeros for audit in block.audits.values())
    weights = sum(audit.weights for audit in block.audits.values())
    return round(zeros / weights, 6)


def _record(
    run: ReadyRun, blocks: Sequence[BlockRecord], result: Result, files: Mapping[str, str]
) -> RunRecord:
    """What was done and measured, once all blocks are pruned."""
    prepared = run.prepared
    source, calibration = prepared.source, prepared.calibration
    evaluations = () if run.following is None else run.following.evaluations()
    peak = peak_bytes_of(source.device)
    seconds = result.seconds_before + run.seconds
    stage = StageRecord(
        kind=prepared.recipe.kind,
        settings=prepared.recipe.stage_options(),
        blocks=tuple(blocks),
        seconds=seconds,
        notices=(*prepared.notices, *result.notices, *_told_of_mending(prepared.recipe, blocks)),
        left_dense=prepared.left_dense,
        removed=prepared.removed,
        narrowed=prepared.narrowed,
    )
    return RunRecord(
        created=now(),
        settings=prepared.recipe.run_options(),
        commit=None if prepared.folder is None else commit_of(prepared.folder),
        architecture=type(source.model).__name__,
        streamed=source.streamed,
        device=str(source.device),
        dtype=str(source.dtype).removeprefix("torch."),
        calibration=None if calibration is None else calibration.protocol,
        stages=(stage,),
        evaluations=evaluations,
        seconds=seconds,
        peak_memory_bytes=processes.highest(peak_memory_bytes()),
        peak_device_memory_bytes=None if peak is None else processes.highest(peak),
        processes=processes.count(),
        weight_bytes=weight_bytes(prepared.plan, source),
        packed_bytes=packed_weight_bytes(prepared.plan, source, blocks),
        versions=versions(),
        machine=machine(source.device),
        repeatable=repeatability(source.device),
        files=dict(files),
    )


def _record_block(block: BlockResult) -> BlockRecord:
    """What was done to one block."""
    return BlockRecord(
        index=block.index,
        output_error=block.output_error,
        seconds=block.seconds,
        notices=block.notices,
        judged=block.judged,
        parameters={} if block.params is None else block.params.model_dump(mode="json"),
        matrices=tuple(
            MatrixRecord.of(name, audit, block.matrix_errors.get(name))
            for name, audit in block.audits.items()
        ),
    )
