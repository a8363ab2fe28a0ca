"""The whole story in order: a newcomer starts here.

recipe -> model -> calibration -> blocks, one after the other -> result folder and its record
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from secateur.blocks.stream import Stream
from secateur.blocks.sweep import BlockResult, Plan, sweep
from secateur.checkpoint import (
    BlockModel,
    OutputFolder,
    ResidentModel,
    StreamedModel,
    locate,
    open_model,
)
from secateur.data import TokenBatch, load_calibration, load_heldout
from secateur.errors import RecipeError
from secateur.estimate import Estimate, estimate
from secateur.evaluate import Evaluation
from secateur.evaluate import evaluate as measure
from secateur.recipe import Recipe
from secateur.report import BlockRecord, MatrixRecord, Progress, Quiet, RunRecord
from secateur.report.record import machine, now, peak_memory_bytes, versions

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs were all found and checked, before any work is done."""

    recipe: Recipe
    folder: Path
    source: StreamedModel | ResidentModel
    calibration: TokenBatch | None
    plan: Plan
    estimate: Estimate
    notices: tuple[str, ...]


def prepare(recipe: Recipe) -> Prepared:
    """Open the model, read the calibration, check that everything fits together.

    Raises:
        SecateurError: something does not; nothing was written.
    """
    folder = locate(recipe.model)
    device = choose_device(recipe.device)
    source = open_model(folder, device, choose_dtype(recipe.dtype, device))
    notices = []
    if isinstance(source, ResidentModel):
        notices.append("this family's files need conversion: the model was loaded whole")
    calibration = read_calibration(recipe, source, load_tokenizer(folder))
    notices += calibration.notices if calibration is not None else ()
    plan = _plan(recipe)
    sequences, length = (0, 0) if calibration is None else calibration.input_ids.shape
    shapes = estimate(source, plan, sequences, length)
    return Prepared(recipe, folder, source, calibration, plan, shapes, tuple(notices))


def prune(recipe: Recipe, progress: Progress | None = None) -> RunRecord:
    """Prune the model of a recipe into the recipe's folder.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left.
    """
    began = time.perf_counter()
    prepared = prepare(recipe)
    if recipe.out is None:
        raise RecipeError("no folder for the result", hint="--out FOLDER")
    source, blocks = prepared.source, []
    output = OutputFolder(Path(recipe.out), prepared.folder, overwrite=recipe.overwrite)
    with progress or Quiet() as shown, output:
        for notice in prepared.notices:
            shown.notice(notice)
        for result in _run(source, prepared.calibration, prepared.plan, recipe, shown):
            if isinstance(source, StreamedModel):
                output.write_block(source, result.index, result.changed)
            blocks.append(_record_block(source, result))
        if isinstance(source, ResidentModel):
            output.write_whole(source)
        else:
            output.write_surroundings(source)
        record = _record(recipe, source, prepared.calibration, blocks, prepared.notices, began)
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
    device = model.device if recipe.device == "auto" else choose_device(recipe.device)
    source = ResidentModel(model, device, choose_dtype(recipe.dtype, device) or model.dtype)
    plan = _plan(recipe)
    calibration = read_calibration(recipe, source, tokenizer, tokens)
    estimate(source, plan, 0, 0)  # every fault before the first change
    with progress or Quiet() as shown:
        results = _run(source, calibration, plan, recipe, shown)
        blocks = [_record_block(source, result) for result in results]
    notices = () if calibration is None else calibration.notices
    return _record(recipe, source, calibration, blocks, notices, began)


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
    length, notice = _clip(sequence_length, source)
    heldout = load_heldout(
        text,
        tokenizer=load_tokenizer(folder),
        sequence_length=length,
        windows=windows,
        vocabulary=vocabulary(source),
    )
    with progress or Quiet() as shown:
        for line in (*notice, *heldout.notices):
            shown.notice(line)
        shown.begin("evaluate", len(source.blocks))
        size = batch_size(together, heldout.input_ids.shape[1])
        return measure(source, heldout, size, dense, shown.tick)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator if there is one.

    Raises:
        RecipeError: it does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    present = device is not None and (
        device.type == "cpu" or (device.type == "cuda" and str(_numbered(device)) in there)
    )
    if device is None or not present:
        raise RecipeError(f"device {name!r} is not there", wanted=f"one of {', '.join(there)}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The computing precision; None is the checkpoint's own.

    "auto" computes in float32 on a CPU, where half precision is slow and rounds the hidden states,
    and in the checkpoint's own dtype on an accelerator.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError):
        return None


def batch_size(asked: int | None, length: int) -> int:
    """Sequences per batch: what was asked for, or as many as make about 8192 tokens."""
    return asked or max(1, TOKENS_PER_BATCH // length)


def _plan(recipe: Recipe) -> Plan:
    return Plan(
        recipe.chosen_method,
        recipe.chosen_params,
        recipe.chosen_pattern,
        recipe.chosen_regional,
        recipe.seed,
    )


def read_calibration(
    recipe: Recipe,
    source: BlockModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Tensor | None = None,
) -> TokenBatch | None:
    """The calibration sequences, no longer than the model allows; None if there are to be none.

    Args:
        recipe: names the source and the sizes.
        source: the model.
        tokenizer: for sources that are text.
        tokens: int64 [sequences, tokens] in place of the recipe's source.

    Raises:
        DataError: the source cannot be read or is too short.
    """
    asked: str | Tensor | None = recipe.calibration if tokens is None else tokens
    if asked is None:
        return None
    length, notices = _clip(recipe.sequence_length, source)
    batch = load_calibration(
        asked,
        tokenizer=tokenizer,
        samples=recipe.samples,
        sequence_length=length,
        seed=recipe.seed,
        vocabulary=vocabulary(source),
    )
    return replace(batch, notices=(*notices, *batch.notices))


def vocabulary(source: BlockModel) -> int:
    """How many tokens the model can read."""
    size: int = source.model.get_input_embeddings().weight.shape[0]
    return size


def _clip(length: int, source: BlockModel) -> tuple[int, tuple[str, ...]]:
    """`length`, or the longest that the model allows and a notice that says so."""
    config = source.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return length, ()
    return limit, (f"sequences are {limit} tokens, the most this model allows, not {length}",)


def _run(
    source: BlockModel,
    calibration: TokenBatch | None,
    plan: Plan,
    recipe: Recipe,
    progress: Progress,
) -> Iterator[BlockResult]:
    """The blocks of `source` as they are pruned, shown as they pass."""
    progress.begin("prune", len(source.blocks))
    stream = None
    if calibration is not None:
        together = batch_size(recipe.batch_size, calibration.input_ids.shape[1])
        stream = Stream(source, calibration.input_ids, together)
    for result in sweep(source, stream, plan, progress.tick):
        yield result
        zeros = sum(audit.zeros for audit in result.audits.values())
        weights = sum(audit.weights for audit in result.audits.values())
        progress.block(
            block=result.index,
            blocks=len(source.blocks),
            sparsity=round(zeros / weights, 6),
            output_error=result.output_error,
            seconds={name: round(value, 3) for name, value in result.seconds.items()},
        )


def _record_block(source: BlockModel, result: BlockResult) -> BlockRecord:
    prefix = source.blocks.prefix(result.index)
    matrices = [MatrixRecord.of(f"{prefix}{name}", audit) for name, audit in result.audits.items()]
    return BlockRecord(
        index=result.index,
        output_error=result.output_error,
        seconds=result.seconds,
        matrices=tuple(matrices),
    )


def _record(
    recipe: Recipe,
    source: BlockModel,
    calibration: TokenBatch | None,
    blocks: list[BlockRecord],
    notices: tuple[str, ...],
    began: float,
) -> RunRecord:
    on_cuda = source.device.type == "cuda"
    return RunRecord(
        created=now(),
        recipe=recipe.spelled_out(),
        architecture=type(source.model).__name__,
        streamed=not isinstance(source, ResidentModel),
        device=str(source.device),
        dtype=str(source.dtype).removeprefix("torch."),
        calibration=None if calibration is None else calibration.protocol,
        blocks=tuple(blocks),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
        versions=versions(),
        machine=machine(source.device),
        notices=notices,
    )


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, device.index or 0)
