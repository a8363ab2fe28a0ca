"""Prepares a recovery: every input is found, read and checked against the others."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.bundled import BUILTIN_MODEL
from secateur.checkpoint import (
    BlockModel,
    Checkpoint,
    Destination,
    load_whole,
    locate,
    open_model,
)
from secateur.checkpoint.fingerprint import SourceFiles, every_byte
from secateur.checkpoint.model_facts import clip, load_tokenizer, vocabulary
from secateur.data import SELF, Draw, TokenBatch, load_heldout, overlaps
from secateur.errors import DataError, ModelError, OutputError, RecipeError
from secateur.machine.device import choose_device
from secateur.machine.paths import pinned
from secateur.pruning.inputs import read_texts
from secateur.recipe.differences import deciding
from secateur.recipe.wording import name_of
from secateur.record import RunRecord, read_record
from secateur.recovery.resume import InterruptedRecovery
from secateur.recovery.settings import Recovery
from secateur.recovery.zeros import count_zeros
from secateur.sparsity import Selection, parse_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PreparedRecovery:
    """A recovery whose inputs were all found and checked, before any work is done.

    Attributes:
        settings: what was asked for.
        folder: of the sparse model.
        record: of the run that pruned it, if there is one.
        source: the sparse model on disk, read in float32, which holds every stored value.
        selection: what matrices have and are to keep; None if nobody says.
        zeros: in all its prunable matrices.
        dense: folder of the dense model, if it is to be had.
        teacher: its files, as they were at the start.
        text: the sequences; the first `settings.validation` are not trained on.
        heldout: windows to measure on, or None.
        device: where to compute.
        state: where checkpoints go.
        destination: where the result goes.
    """

    settings: Recovery
    folder: Path
    record: RunRecord | None
    source: BlockModel
    selection: Selection | None
    zeros: int
    dense: Path | None
    teacher: SourceFiles | None
    text: TokenBatch
    heldout: TokenBatch | None
    device: torch.device
    state: InterruptedRecovery
    destination: Destination

    @property
    def training(self) -> Tensor:
        """Sequences to train on, int64 [sequences, tokens]."""
        return self.text.input_ids[self.settings.validation :]

    @property
    def validation(self) -> Tensor:
        """Sequences to judge by, int64 [sequences, tokens]."""
        return self.text.input_ids[: self.settings.validation]

    @property
    def notices(self) -> tuple[str, ...]:
        """The lines that the user should read."""
        batches = [batch for batch in (self.text, self.heldout) if batch is not None]
        return tuple(dict.fromkeys(line for batch in batches for line in batch.notices))

    @property
    def half(self) -> bool:
        """Whether training multiplies in bfloat16."""
        asked = self.settings.dtype
        return asked == "bfloat16" or (asked == "auto" and self.device.type != "cpu")

    def load(self, folder: Path) -> PreTrainedModel:
        """A whole model, ready to train on: float32, or as stored where training is in bfloat16."""
        dtype = None if self.half else torch.float32
        trust = self.settings.trust_remote_code
        model = load_whole(folder, dtype, trust_remote_code=trust)
        return model.to(self.device).eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """The facts that a checkpoint must have been made with to go on from it."""
        teacher = self.teacher if self.settings.objective == "distill" else None
        watched = self.source.watch()
        content = {
            "tokens": self.text.protocol.token_sha256,
            "weights": None if watched is None else every_byte(watched),
            "dense weights": None if teacher is None else every_byte(teacher),
        }
        return deciding(Recovery, self.settings.spelled_out(), content)

    def check_unchanged(self) -> None:
        """Prove that both models are what they were at the start.

        Raises:
            CheckpointError: one is not.
        """
        for files in (self.source.watch(), self.teacher):
            if files is not None:
                files.check()


def prepare_recovery(
    settings: Recovery, state: InterruptedRecovery | None = None
) -> PreparedRecovery:
    """Open the sparse model, prove its pattern, read the texts.

    Args:
        settings: what to do.
        state: where checkpoints go; none: beside the result.

    Raises:
        SecateurError: something does not fit; nothing was written.
    """
    trust = settings.trust_remote_code
    folder = locate(pinned(settings.model, settings.revision), trust_remote_code=trust)
    record = read_record(folder)
    dense = _dense(settings, record)
    destination = Destination(
        Path(settings.out),
        folder,
        overwrite=settings.overwrite,
        with_code=trust,
        others=() if dense is None else (dense,),
        command="recover",
    )
    destination.check()
    state = state or InterruptedRecovery.beside(destination.out)
    if state.exists and not (settings.resume or settings.overwrite):
        raise OutputError(
            "an interrupted recovery left a checkpoint",
            where=state.path,
            hint="--resume to go on, or --overwrite to begin anew",
        )
    device, selection = choose_device(settings.device), None
    if settings.pattern is not None:
        selection = Selection(parse_pattern(settings.pattern))
    elif record is not None:
        selection = record.selection
    cpu = torch.device("cpu")
    source = open_model(folder, cpu, torch.float32, trust_remote_code=trust)
    if source.quantised and settings.result != "adapters":
        raise ModelError(
            "the weights are quantised, and training would move them off their grid",
            where=folder,
            hint=f"{name_of('result')} adapters, which stand beside them, or recovering first, then"
            " prune --pattern dense --quantize",
        )
    source.watch()
    zeros = count_zeros(source, selection, {})
    removed = record is not None and record.removed
    if not zeros and not source.quantised and not (record is not None and record.lost):
        raise ModelError(
            "the model has no zeros to keep", where=settings.model, hint="secateur prune"
        )
    if removed and settings.block_weight:
        raise RecipeError(
            "the dense model has blocks that this one has lost: their outputs cannot be compared",
            where=folder,
            hint="block_weight 0",
        )
    text, heldout = _read(settings, folder, source, dense, device)
    return PreparedRecovery(
        settings, folder, record, source, selection, zeros, dense,
        None if dense is None else Checkpoint(dense, trust_remote_code=trust).source,
        text, heldout, device, state, destination,
    )  # fmt: skip


def _dense(settings: Recovery, record: RunRecord | None) -> Path | None:
    """The dense model: what was asked for, or what run.json names if that is a folder here."""
    if settings.dense is not None:
        return locate(settings.dense, trust_remote_code=settings.trust_remote_code)
    named = None if record is None else record.settings.get("model")
    if named == BUILTIN_MODEL or (
        isinstance(named, str) and os.path.isfile(os.path.join(named, "config.json"))
    ):
        return locate(named)
    if settings.objective == "distill":
        raise RecipeError("distillation needs the dense model", hint="--dense FOLDER")
    return None


def _read(
    settings: Recovery, folder: Path, source: BlockModel, dense: Path | None, device: torch.device
) -> tuple[TokenBatch, TokenBatch | None]:
    """The sequences to train and judge on, and the windows to measure on."""
    tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    length, notices = clip(settings.sequence_length, source)
    draw = Draw(
        settings.validation + settings.trained_sequences,
        length,
        settings.seed,
        sampling="auto" if settings.text == "c4" else "joined",  # as much of it as there is
        column=settings.column,
        bos=settings.bos,
    )

    def writer() -> PreTrainedModel:
        if dense is None:
            raise RecipeError("the dense model writes the text", where=SELF, hint="--dense FOLDER")
        model = load_whole(dense, None, trust_remote_code=settings.trust_remote_code)
        return model.to(device)

    text = read_texts(settings.texts, settings.shares, draw, source, tokenizer, writer)
    if len(text.input_ids) <= settings.validation:
        raise DataError(
            f"{len(text.input_ids)} sequences, of which {settings.validation} are to judge by",
            where=" + ".join(settings.texts),
            hint="more text, or fewer --validation sequences",
        )
    heldout = None
    if settings.heldout is not None:
        heldout = load_heldout(
            settings.heldout,
            tokenizer=tokenizer,
            sequence_length=length,
            windows=settings.windows,
            vocabulary=vocabulary(source),
            bos=settings.bos,
        )
    told = () if heldout is None else overlaps(text, [heldout], use="training")
    return replace(text, notices=(*notices, *text.notices, *told)), heldout
