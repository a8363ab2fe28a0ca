"""The whole story in order: a newcomer starts here.

recipe -> model and texts -> [full-model gradients] -> blocks, one after the other
       -> [held-out perplexity] -> result folder and its record
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.blocks.stream import Stream
from secateur.blocks.sweep import Aim, BlockResult, sweep
from secateur.checkpoint import ResidentModel, StreamedModel
from secateur.checkpoint.background import Behind
from secateur.checkpoint.gradient_store import GradientFile
from secateur.errors import RecipeError
from secateur.evaluation import Following
from secateur.machine import processes
from secateur.machine.facts import machine, now, peak_memory_bytes, repeatability, versions
from secateur.progress import Progress, Quiet
from secateur.pruning.allocate import allocate
from secateur.pruning.dense_passes import aim_of, first_block, follow, gradients_of
from secateur.pruning.prepare import Prepared, prepare, prepare_in_place
from secateur.pruning.resume import go_on, keep, open_output, streams_of
from secateur.pruning.reuse import Remembered
from secateur.recipe import Recipe
from secateur.record import BlockRecord, MatrixRecord, RunRecord


def prune(
    recipe: Recipe, progress: Progress | None = None, shared: Remembered | None = None
) -> RunRecord:
    """Prune the model of a recipe into the recipe's folder; without one, only measure it.

    Args:
        recipe: what to do.
        progress: told what happens.
        shared: what the runs of a comparison have in common.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left, but
            finished blocks are, and the next run of the same recipe goes on after them.
    """
    began = time.perf_counter()
    if recipe.out is None and recipe.text is None:
        raise RecipeError(
            "no folder for the result", hint="--out FOLDER, or --text SOURCE to measure only"
        )
    shared = shared or Remembered()
    shared.owed = 0.0
    prepared = prepare(recipe, shared)
    if recipe.out is None:
        return _only_measure(prepared, shared, progress or Quiet(), began)
    with (
        progress or Quiet() as shown,
        open_output(prepared, shown.notice) as output,
        Behind() as behind,
    ):
        scratch = output.state.folder
        prepared = allocate(prepared, shown, scratch)
        following, stream = follow(prepared, shared, shown, scratch), _stream(prepared)
        blocks = [BlockRecord.model_validate(done.record) for done in output.state.finished]
        gradients = gradients_of(prepared, shared, stream, scratch, shown)
        aim = aim_of(prepared, shared, stream, scratch, shown)
        streams = streams_of(stream, aim.dense, following)
        done = go_on(output, prepared, streams)
        for result in _results(prepared, shared, gradients, shown, stream, aim, following, done):
            blocks.append(_record_block(result))
            spent = output.seconds_before + _seconds(shared, following, began)
            changed = dict(result.changed)
            hidden = {name: moving.hidden for name, moving in streams.items()}
            behind.do(partial(keep, output, prepared, changed, blocks[-1], hidden, spent))
        behind.wait()
        files = {}
        if processes.first():
            if isinstance(prepared.source, ResidentModel):
                output.write_whole(prepared.source)
            else:
                output.write_surroundings(prepared.source)
            files = output.seal()
        began -= output.seconds_before
        record = _record(prepared, shared, blocks, following, began, output.notices, files)
        if processes.first():
            output.finish(record.model_dump_json(indent=2) + "\n")
    return processes.from_first(lambda: record)


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
    began = time.perf_counter()
    prepared = prepare_in_place(model, recipe, tokenizer, tokens)
    return _only_measure(prepared, Remembered(), progress or Quiet(), began)


def _only_measure(
    prepared: Prepared, shared: Remembered, progress: Progress, began: float
) -> RunRecord:
    """Prune and write nothing; what is in memory stays pruned."""
    with progress as shown, tempfile.TemporaryDirectory() as scratch:
        prepared = allocate(prepared, shown)
        following, stream = follow(prepared, shared, shown), _stream(prepared)
        gradients = gradients_of(prepared, shared, stream, Path(scratch), shown)
        aim = aim_of(prepared, shared, stream, Path(scratch), shown)
        results = _results(prepared, shared, gradients, shown, stream, aim, following)
        blocks = [_record_block(result) for result in results]
        return _record(prepared, shared, blocks, following, began)


def _stream(prepared: Prepared) -> Stream | None:
    """The calibration sequences before block 0; None for a method that needs none."""
    if prepared.calibration is None:
        return None
    calibration, source = prepared.calibration, prepared.source
    size = batch_size(prepared.recipe.batch_size, tokens_in_each(calibration, source), source)
    return Stream(source, calibration.inputs, size, calibration.labels)


def _results(
    prepared: Prepared,
    shared: Remembered,
    gradients: GradientFile | None,
    shown: Progress,
    stream: Stream | None,
    aim: Aim,
    following: Following | None,
    done: int = 0,
) -> Iterator[BlockResult]:
    """The blocks of a run as they are pruned, shown as they pass; `done` are finished already."""
    source, plan, recipe = prepared.source, prepared.plan, prepared.recipe
    for line in prepared.notices:
        shown.notice(line)
    shown.begin(f"{recipe.method} {recipe.pattern}", len(source.blocks))
    first = None if stream is None or done else first_block(prepared, shared, stream)
    for result in sweep(source, stream, plan, gradients, shown.tick, first, done, aim):
        if following is not None:
            following.advance(source.blocks.modules[result.index], result.index)
        yield result
        result.changed.clear()  # who wants it has it by now, and the next block needs the room
        for line in result.notices:
            shown.notice(line)
        zeros = sum(audit.zeros for audit in result.audits.values())
        weights = sum(audit.weights for audit in result.audits.values())
        shown.block(
            block=result.index,
            blocks=len(source.blocks),
            sparsity=round(zeros / weights, 6),
            output_error=result.output_error,
            seconds={name: round(value, 3) for name, value in result.seconds.items()},
        )


def _record(
    prepared: Prepared,
    shared: Remembered,
    blocks: list[BlockRecord],
    following: Following | None,
    began: float,
    notices: tuple[str, ...] = (),
    files: Mapping[str, str] = MappingProxyType({}),
) -> RunRecord:
    source, calibration = prepared.source, prepared.calibration
    on_cuda = source.device.type == "cuda"
    evaluations = () if following is None else following.evaluations()
    return RunRecord(
        created=now(),
        recipe=prepared.recipe.spelled_out(),
        architecture=type(source.model).__name__,
        streamed=isinstance(source, StreamedModel),
        device=str(source.device),
        dtype=str(source.dtype).removeprefix("torch."),
        calibration=None if calibration is None else calibration.protocol,
        blocks=tuple(blocks),
        evaluations=evaluations,
        seconds=_seconds(shared, following, began),
        peak_memory_bytes=processes.highest(peak_memory_bytes()),
        peak_device_memory_bytes=(
            processes.highest(torch.cuda.max_memory_allocated()) if on_cuda else None
        ),
        processes=processes.count(),
        versions=versions(),
        machine=machine(source.device),
        repeatable=repeatability(source.device),
        notices=(*prepared.notices, *notices),
        files=dict(files),
    )


def _seconds(shared: Remembered, following: Following | None, began: float) -> float:
    """What the run has taken so far but for measuring, with what others did for it."""
    measuring = 0.0 if following is None else following.seconds
    return time.perf_counter() - began - measuring + shared.owed


def _record_block(result: BlockResult) -> BlockRecord:
    return BlockRecord(
        index=result.index,
        output_error=result.output_error,
        seconds=result.seconds,
        notices=result.notices,
        judged=result.judged,
        matrices=tuple(
            MatrixRecord.of(name, audit, result.matrix_errors.get(name))
            for name, audit in result.audits.items()
        ),
    )
