"""A recovery from end to end: sparse model -> trained -> as it is stored, proved, written.

    prepare    the model has its pattern; the texts are there; nothing is in the way of the result
    measure    the dense model, if there is one, and the sparse one
    train      adapters that leave the zeros alone, plain ones that stay beside, or the weights
    measure    adapters before the merge; the result
    write      whole or not at all, when every zero has been proved

Perplexity is measured in float32 whatever training computes in, so that two numbers differ by the
weights alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.checkpoint import (
    BlockModel,
    Checkpoint,
    OutputFolder,
    ResidentModel,
    commit_of,
    open_model,
)
from secateur.checkpoint.weight_files import CONFIG
from secateur.evaluation import Evaluation, perplexity_of
from secateur.machine.facts import machine, now, peak_memory_bytes, versions
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet
from secateur.recipe.wording import name_of
from secateur.record import RecoveryRecord, RunRecord, StageRecord
from secateur.recovery.kept_weights import KeptWeights
from secateur.recovery.objective import Objective, distillation, language_model_loss
from secateur.recovery.prepare import PreparedRecovery, prepare_recovery
from secateur.recovery.resume import InterruptedRecovery
from secateur.recovery.settings import Recovery
from secateur.recovery.targets import find_parameters, find_targets
from secateur.recovery.training import train
from secateur.recovery.zeros import count_zeros

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from secateur.recovery.adapter import Adapters


def run_recovery(
    settings: Recovery,
    progress: Progress | None = None,
    *,
    state: InterruptedRecovery | None = None,
    whole: Callable[[RunRecord], RunRecord] = lambda record: record,
) -> RunRecord:
    """Train a sparse model and write it to `settings.out`, every zero kept.

    Args:
        settings: what to do.
        progress: told what happens.
        state: where checkpoints go; none: beside the result.
        whole: what becomes of the record before it is written.

    Returns:
        the record of the pruning run with `recovery` filled in; `run.json` holds the same.

    Raises:
        SecateurError: something could not be read, done or written, or a zero did not survive; no
            result folder is left. A checkpoint to go on from is, if training had begun.
    """
    began = time.perf_counter()
    prepared = prepare_recovery(settings, state)
    with (
        progress or Quiet() as progress,
        OutputFolder(prepared.destination) as output,
        nullcontext() if state else _telling_what_is_kept(prepared.state, progress),
    ):
        for line in prepared.notices:
            progress.notice(line)
        dense = _measure_folder(prepared, prepared.dense, "dense", progress)
        pruned = _measure_folder(prepared, prepared.folder, "pruned", progress)
        model = prepared.load(prepared.folder)
        trainee = _trainee(prepared, model)
        trained = train(trainee, _objective(prepared), prepared, progress)
        before = after = None
        if not isinstance(trainee, KeptWeights):
            before = after = _measure(prepared, model, "adapted", progress)
        stored: dict[str, Tensor] = {}
        if settings.result == "merged":
            with doing("making the weights that are stored"):
                stored = trainee.stored()
            if not isinstance(trainee, KeptWeights):
                trainee.model.unload()  # the model is as it was, its own layers in their places
            _put(model, stored)
            after = _measure(prepared, model, "recovered", progress)
        zeros = count_zeros(prepared.source, prepared.selection, stored)
        recovery = RecoveryRecord(
            created=now(),
            settings=settings.spelled_out(),
            text=prepared.text.protocol,
            trained_parameters=trainee.parameters(),
            curve=trained.curve,
            steps=trained.steps,
            best_step=trained.best.step,
            interruptions=trained.interruptions,
            dense=dense,
            pruned=pruned,
            adapted=before,
            recovered=after,
            zeros_before=prepared.zeros,
            zeros_after=zeros,
            seconds=trained.seconds,
            versions={**versions(), "peft": version("peft")},
            machine=machine(prepared.device),
            notices=prepared.notices,
        )
        record = whole(_whole_record(prepared, recovery, began))
        _write(prepared, output, stored)
        if settings.result == "adapters" and not isinstance(trainee, KeptWeights):
            output.write_folder("adapter", trainee.model.save_pretrained)
        record = record.model_copy(update={"files": output.seal()})
        prepared.check_unchanged()
        output.finish(record.model_dump_json(indent=2) + "\n")
        prepared.state.remove()
    return record


@contextmanager
def _telling_what_is_kept(state: InterruptedRecovery, progress: Progress) -> Iterator[None]:
    """What ends the work inside leaves a checkpoint, if training had begun: say how to go on."""
    try:
        yield
    except BaseException:
        if state.exists:
            progress.notice(
                f"what was trained is kept in {state.path}: the same with {name_of('resume')} goes"
                f" on from there, with {name_of('overwrite')} it begins anew"
            )
        raise


def _trainee(prepared: PreparedRecovery, model: PreTrainedModel) -> Adapters | KeptWeights:
    """The model with what is to be trained of it."""
    settings, dtype = prepared.settings, prepared.source.storage_dtype
    if settings.train != "adapters":
        return KeptWeights(model, find_parameters(model, settings), dtype)
    from secateur.recovery.adapter import Adapters, AdapterShape  # loads peft

    shape = AdapterShape(
        find_targets(model, settings.targets),
        settings.rank,
        settings.chosen_alpha,
        masked=settings.result == "merged",
    )
    return Adapters(model, shape, dtype, settings.seed)


def _objective(prepared: PreparedRecovery) -> Objective:
    settings = prepared.settings
    if settings.objective == "lm" or prepared.dense is None:
        return language_model_loss
    return distillation(prepared.load(prepared.dense), settings.block_weight)


def _measure_folder(
    prepared: PreparedRecovery, folder: Path | None, name: str, progress: Progress
) -> Evaluation | None:
    """A model on disk, one block in memory; None if there is nothing to measure, or no text."""
    if prepared.heldout is None or folder is None:
        return None
    trust = prepared.settings.trust_remote_code
    source = open_model(folder, prepared.device, torch.float32, trust_remote_code=trust)
    return _perplexity(prepared, source, name, progress)


def _measure(
    prepared: PreparedRecovery, model: PreTrainedModel, name: str, progress: Progress
) -> Evaluation | None:
    """A model in memory, as it is; None if there is nothing to measure on."""
    source = ResidentModel(model, prepared.device, torch.float32)
    return _perplexity(prepared, source, name, progress)


def _perplexity(
    prepared: PreparedRecovery, source: BlockModel, name: str, progress: Progress
) -> Evaluation | None:
    if prepared.heldout is None:
        return None
    progress.begin(name, len(source.blocks))
    together = batch_size(None, prepared.heldout.input_ids.shape[1], source)
    evaluation = perplexity_of(source, prepared.heldout, together, tick=progress.tick)
    progress.block(model=name, perplexity=round(evaluation.perplexity, 4))
    return evaluation


def _put(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Overwrite parameters by their names in the model."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)


def _write(prepared: PreparedRecovery, output: OutputFolder, stored: dict[str, Tensor]) -> None:
    """The sparse model with its trained weights; everything else bit for bit as it was."""
    source = prepared.source
    if source.quantised:  # adapters stand beside the very tensors
        assert not stored
        for name, tensors in Checkpoint(prepared.folder).stored_files():
            output.write_shard(name, tensors)
        config = (prepared.folder / CONFIG).read_text(encoding="utf-8")
        output.write_file(CONFIG, config)
        return
    if source.streamed:
        for index in range(len(source.blocks)):
            prefix = source.blocks.prefix(index)
            changed = {name: weight for name, weight in stored.items() if name.startswith(prefix)}
            output.store_block(source, index, changed)
    else:
        _put(source.model, stored)
    output.write_rest(source)


def _whole_record(prepared: PreparedRecovery, recovery: RecoveryRecord, began: float) -> RunRecord:
    """The record of the pruning run with the recovery in it; a new one where there was none."""
    if prepared.record is not None:
        # what the sparse model scored in tasks is not what this one does
        return prepared.record.model_copy(update={"recovery": recovery, "tasks": ()})
    source, settings = prepared.source, prepared.settings
    pattern = {} if settings.pattern is None else {"pattern": settings.pattern}
    unknown = StageRecord(
        kind="prune", settings={"method": "unknown", **pattern}, blocks=(), seconds=0.0
    )
    return RunRecord(
        created=now(),
        settings={"model": settings.model, "out": settings.out},
        commit=commit_of(prepared.folder),
        stages=(unknown,),
        architecture=type(source.model).__name__,
        streamed=source.streamed,
        device=str(prepared.device),
        dtype=str(source.dtype).removeprefix("torch."),
        calibration=None,
        recovery=recovery,
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=None,
        versions=versions(),
        machine=machine(prepared.device),
    )
