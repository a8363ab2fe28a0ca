"""Perplexity of a model folder on held-out text: `secateur evaluate --text`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.checkpoint import BlockModel, locate, open_model
from secateur.checkpoint.model_facts import clip, load_tokenizer, vocabulary
from secateur.data import load_heldout
from secateur.errors import RecipeError
from secateur.evaluation.perplexity import Evaluation, perplexity_of
from secateur.evaluation.settings import EvaluationSettings
from secateur.machine import processes
from secateur.machine.device import choose_device, choose_dtype
from secateur.machine.paths import pinned
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet


def evaluate_text(
    settings: EvaluationSettings, progress: Progress | None = None, tokens: Tensor | None = None
) -> Evaluation:
    """Perplexity of a model folder on held-out text, and its divergence from another.

    Args:
        settings: which model, on what, and how.
        progress: told what happens; silent by default.
        tokens: int64 windows [windows, tokens] to measure on, in place of `settings.text`.

    Raises:
        SecateurError: something cannot be read, or does not fit.
    """
    folder, source, dense = open_both(settings)
    if dense is not None and vocabulary(dense) != vocabulary(source):
        raise RecipeError(
            f"the models have vocabularies of {vocabulary(source)} and {vocabulary(dense)}",
            where="--against",
            wanted="the dense model that this one was made from",
        )
    length, notices = clip(settings.sequence_length, source)
    trust = settings.trust_remote_code
    text = tokens if tokens is not None else settings.text
    if text is None:
        raise RecipeError("no held-out text to measure on", hint="--text SOURCE")
    heldout = processes.from_first(
        lambda: load_heldout(
            text,
            tokenizer=load_tokenizer(folder, trust_remote_code=trust),
            sequence_length=length,
            windows=settings.windows,
            vocabulary=vocabulary(source),
            bos=settings.bos,
        )
    )
    with doing(f"measuring {settings.model}"), progress or Quiet() as told:
        of_files = [line for model in (source, dense) if model for line in model.notices]
        for line in (*of_files, *notices, *heldout.notices):
            told.notice(line)
        size = batch_size(settings.batch_size, heldout.input_ids.shape[1], source)
        evaluation = perplexity_of(source, heldout, size, dense, told.tick)
    for model in (source, dense):
        if model is not None and (files := model.watch()) is not None:
            files.check()
    return evaluation


def open_both(settings: EvaluationSettings) -> tuple[Path, BlockModel, BlockModel | None]:
    """The folder of the model, the model, and the one to compare it with; their blocks closed."""
    trust, device = settings.trust_remote_code, choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    folder = locate(pinned(settings.model, settings.revision), trust_remote_code=trust)
    source = open_model(folder, device, dtype, trust_remote_code=trust)
    if settings.against is None:
        return folder, source, None
    against = locate(settings.against, trust_remote_code=trust)
    return folder, source, open_model(against, device, dtype, trust_remote_code=trust)
