"""Perplexity of a model folder on held-out text: `secateur evaluate --text`."""

from __future__ import annotations

from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.checkpoint import locate, open_model
from secateur.checkpoint.model_facts import clip, load_tokenizer, vocabulary
from secateur.data import load_heldout
from secateur.errors import RecipeError
from secateur.evaluation.perplexity import Evaluation, perplexity_of
from secateur.machine import processes
from secateur.machine.device import choose_device, choose_dtype
from secateur.progress import Progress, Quiet


def evaluate_text(
    model: str,
    text: str | Tensor,
    *,
    against: str | None = None,
    sequence_length: int = 2048,
    windows: int | None = None,
    together: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
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
        dtype, device, trust_remote_code, progress: as for `prune`.

    Raises:
        SecateurError: something cannot be read, or does not fit.
    """
    trust, where = trust_remote_code, choose_device(device)
    folder = locate(model, trust_remote_code=trust)
    source = open_model(folder, where, choose_dtype(dtype, where), trust_remote_code=trust)
    dense = None
    if against is not None:
        other = locate(against, trust_remote_code=trust)
        dense = open_model(other, where, choose_dtype(dtype, where), trust_remote_code=trust)
        if vocabulary(dense) != vocabulary(source):
            raise RecipeError(
                f"the models have vocabularies of {vocabulary(source)} and {vocabulary(dense)}",
                where="--against",
                wanted="the dense model that this one was made from",
            )
    length, notices = clip(sequence_length, source)
    heldout = processes.from_first(
        lambda: load_heldout(
            text,
            tokenizer=load_tokenizer(folder, trust_remote_code=trust),
            sequence_length=length,
            windows=windows,
            vocabulary=vocabulary(source),
        )
    )
    with progress or Quiet() as shown:
        for line in (*notices, *heldout.notices):
            shown.notice(line)
        size = batch_size(together, heldout.input_ids.shape[1], source)
        return perplexity_of(source, heldout, size, dense, shown.tick)
