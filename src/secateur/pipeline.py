"""The whole story in order: a newcomer starts here.

recipe -> model and calibration -> [full-model gradients] -> blocks, one after the other
       -> result folder and its record
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.blocks.gradients import full_gradients
from secateur.blocks.stream import Stream
from secateur.blocks.sweep import BlockResult, sweep
from secateur.checkpoint import OutputFolder, ResidentModel, StreamedModel, locate, open_model
from secateur.checkpoint.gradients import GradientFile
from secateur.data import load_heldout
from secateur.errors import RecipeError
from secateur.evaluate import Evaluation
from secateur.evaluate import evaluate as measure
from secateur.prepare import (
    Prepared,
    batch_size,
    choose_device,
    choose_dtype,
    clip,
    load_tokenizer,
    matrix_shapes,
    prepare,
    prepare_in_place,
    vocabulary,
)
from secateur.recipe import Recipe
from secateur.report import BlockRecord, MatrixRecord, Progress, Quiet, RunRecord
from secateur.report.record import machine, now, peak_memory_bytes, versions


def prune(recipe: Recipe, progress: Progress | None = None) -> RunRecord:
    """Prune the model of a recipe into the recipe's folder.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left.
    """
    began = time.perf_counter()
    if recipe.out is None:
        raise RecipeError("no folder for the result", hint="--out FOLDER")
    prepared = prepare(recipe)
    assert prepared.folder is not None
    source, blocks = prepared.source, list[BlockRecord]()
    output = OutputFolder(Path(recipe.out), prepared.folder, overwrite=recipe.overwrite)
    with progress or Quiet() as shown, output:
        for result in _results(prepared, output.state.folder, shown):
            if isinstance(source, StreamedModel):
                output.write_block(source, result.index, result.changed)
            blocks.append(_record_block(result))
        if isinstance(source, ResidentModel):
            output.write_whole(source)
        else:
            output.write_surroundings(source)
        record = _record(prepared, blocks, began, output.seal())
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
    with progress or Quiet() as shown, tempfile.TemporaryDirectory() as scratch:
        results = _results(prepared, Path(scratch), shown)
        blocks = [_record_block(result) for result in results]
    return _record(prepared, blocks, began, {})


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


def _results(prepared: Prepared, scratch: Path, shown: Progress) -> Iterator[BlockResult]:
    """The blocks of a run as they are pruned, shown as they pass."""
    source, plan, recipe = prepared.source, prepared.plan, prepared.recipe
    for line in prepared.notices:
        shown.notice(line)
    stream = None
    if (calibration := prepared.calibration) is not None:
        together = batch_size(recipe.batch_size, calibration.input_ids.shape[1])
        stream = Stream(source, calibration.input_ids, together)
    gradients = _gradients(prepared, stream, scratch, shown)
    shown.begin("prune", len(source.blocks))
    for result in sweep(source, stream, plan, gradients, shown.tick):
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


def _gradients(
    prepared: Prepared, stream: Stream | None, scratch: Path, shown: Progress
) -> GradientFile | None:
    """The full-model gradients, as given or computed now; None if the method needs none."""
    source, plan, recipe = prepared.source, prepared.plan, prepared.recipe
    facts = prepared.gradient_facts
    if facts is None or stream is None or prepared.gradients is not None:
        return prepared.gradients
    kept = recipe.save_gradients
    path = Path(kept) if kept is not None else scratch / "gradients.safetensors"
    shown.begin("gradients", 2 * len(source.blocks))
    with GradientFile.create(path, matrix_shapes(source), facts) as file:
        full_gradients(
            source, stream, file, plan.params.gradient_order, scratch, recipe.block_inputs,
            shown.tick, shown.block,
        )  # fmt: skip
    return GradientFile(path)


def _record(
    prepared: Prepared, blocks: list[BlockRecord], began: float, files: dict[str, str]
) -> RunRecord:
    source, calibration = prepared.source, prepared.calibration
    on_cuda = source.device.type == "cuda"
    return RunRecord(
        created=now(),
        recipe=prepared.recipe.spelled_out(),
        architecture=type(source.model).__name__,
        streamed=isinstance(source, StreamedModel),
        device=str(source.device),
        dtype=str(source.dtype).removeprefix("torch."),
        calibration=None if calibration is None else calibration.protocol,
        blocks=tuple(blocks),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
        versions=versions(),
        machine=machine(source.device),
        notices=prepared.notices,
        files=files,
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
