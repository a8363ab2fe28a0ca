"""The whole story in order: a newcomer starts here.

recipe -> model and texts -> [full-model gradients] -> blocks, one after the other
       -> [held-out perplexity] -> result folder and its record
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.blocks.stream import Stream
from secateur.blocks.sweep import BlockResult, sweep
from secateur.checkpoint import (
    OutputFolder,
    ResidentModel,
    StreamedModel,
    locate,
    open_model,
)
from secateur.data import load_heldout
from secateur.errors import RecipeError
from secateur.evaluate import Evaluation, Following
from secateur.evaluate import evaluate as measure
from secateur.groundwork import first_block, follow, gradients_of
from secateur.placement import batch_size, choose_device, choose_dtype
from secateur.prepare import Prepared, prepare, prepare_in_place
from secateur.recipe import Recipe
from secateur.remembered import Remembered
from secateur.report import BlockRecord, MatrixRecord, Progress, Quiet, RunRecord
from secateur.report.record import machine, now, peak_memory_bytes, versions
from secateur.sequences import clip, load_tokenizer, vocabulary


def prune(
    recipe: Recipe, progress: Progress | None = None, shared: Remembered | None = None
) -> RunRecord:
    """Prune the model of a recipe into the recipe's folder; without one, only measure it.

    Args:
        recipe: what to do.
        progress: told what happens.
        shared: what the runs of a comparison have in common.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left.
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
    assert prepared.folder is not None
    source, blocks = prepared.source, list[BlockRecord]()
    output = OutputFolder(Path(recipe.out), prepared.folder, overwrite=recipe.overwrite)
    with progress or Quiet() as shown, output:
        following = follow(prepared, shared, shown)
        for result in _results(prepared, shared, output.scratch, shown, following):
            if isinstance(source, StreamedModel):
                output.write_block(source, result.index, result.changed)
            blocks.append(_record_block(result))
        if isinstance(source, ResidentModel):
            output.write_whole(source)
        else:
            output.write_surroundings(source)
        record = _record(prepared, shared, blocks, following, began)
        output.finish(record.model_dump_json(indent=2) + "\n")
    return record


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
        tokens: int64 [sequences, tokens] in place of the recipe's calibration source.
        progress: told what happens.

    Raises:
        SecateurError: something does not fit; blocks already pruned stay pruned.
    """
    began = time.perf_counter()
    prepared = prepare_in_place(model, recipe, tokenizer, tokens)
    return _only_measure(prepared, Remembered(), progress or Quiet(), began)


def evaluate(
    model: str,
    text: str | Tensor,
    *,
    against: str | None = None,
    sequence_length: int = 2048,
    windows: int | None = None,
    together: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of a model folder on held-out text, and its divergence from another.

    Args:
        model: folder or hub name.
        text: held-out text, or int64 windows [windows, tokens].
        against: folder or hub name of the dense model.
        sequence_length: tokens per window, clipped to what the model allows.
        windows: how many at most.
        together: windows per batch.
        dtype, device, progress: as for `prune`.

    Raises:
        SecateurError: something cannot be read, or does not fit.
    """
    folder, where = locate(model), choose_device(device)
    source = open_model(folder, where, choose_dtype(dtype, where))
    dense = None
    if against is not None:
        dense = open_model(locate(against), where, choose_dtype(dtype, where))
        if vocabulary(dense) != vocabulary(source):
            raise RecipeError(
                f"the models have vocabularies of {vocabulary(source)} and {vocabulary(dense)}",
                where="--against",
                wanted="the dense model that this one was made from",
            )
    length, notices = clip(sequence_length, source)
    heldout = load_heldout(
        text,
        tokenizer=load_tokenizer(folder),
        sequence_length=length,
        windows=windows,
        vocabulary=vocabulary(source),
    )
    with progress or Quiet() as shown:
        for line in (*notices, *heldout.notices):
            shown.notice(line)
        size = batch_size(together, heldout.input_ids.shape[1])
        return measure(source, heldout, size, dense, shown.tick)


def _only_measure(
    prepared: Prepared, shared: Remembered, progress: Progress, began: float
) -> RunRecord:
    """Prune and write nothing; what is in memory stays pruned."""
    with progress as shown, tempfile.TemporaryDirectory() as scratch:
        following = follow(prepared, shared, shown)
        results = _results(prepared, shared, Path(scratch), shown, following)
        blocks = [_record_block(result) for result in results]
        return _record(prepared, shared, blocks, following, began)


def _results(
    prepared: Prepared,
    shared: Remembered,
    scratch: Path,
    shown: Progress,
    following: Following | None,
) -> Iterator[BlockResult]:
    """The blocks of a run as they are pruned, shown as they pass."""
    source, plan, recipe = prepared.source, prepared.plan, prepared.recipe
    for line in prepared.notices:
        shown.notice(line)
    stream = None
    if (calibration := prepared.calibration) is not None:
        together = batch_size(recipe.batch_size, calibration.input_ids.shape[1])
        stream = Stream(source, calibration.input_ids, together)
    gradients = gradients_of(prepared, shared, stream, scratch, shown)
    shown.begin(f"{recipe.method} {recipe.pattern}", len(source.blocks))
    first = None if stream is None else first_block(prepared, shared, stream)
    for result in sweep(source, stream, plan, gradients, shown.tick, first):
        if following is not None:
            following.advance(source.blocks.modules[result.index], result.index)
        yield result
        result.changed.clear()  # it is written by now, and the next block needs the room
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
) -> RunRecord:
    source, calibration = prepared.source, prepared.calibration
    on_cuda = source.device.type == "cuda"
    evaluations = () if following is None else (following.evaluation(),)
    measuring = 0.0 if following is None else following.seconds
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
        seconds=time.perf_counter() - began - measuring + shared.owed,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
        versions=versions(),
        machine=machine(source.device),
        notices=prepared.notices,
    )


def _record_block(result: BlockResult) -> BlockRecord:
    return BlockRecord(
        index=result.index,
        output_error=result.output_error,
        seconds=result.seconds,
        notices=result.notices,
        matrices=tuple(
            MatrixRecord.of(name, audit, result.matrix_errors.get(name))
            for name, audit in result.audits.items()
        ),
    )
