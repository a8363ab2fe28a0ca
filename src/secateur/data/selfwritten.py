"""Calibration text that the dense model writes itself: all of it, for users who have no data that
they may use, or more of what there is.

    first tokens    what the tokenizer puts before any text; if it adds nothing, or where bos is
                    stream, the model's own beginning-of-text token, or any token if it has none;
                    of more text, some in a row of a sequence that there is come after the former
    token t + 1     drawn from p(. | tokens 1 to t), at temperature 1, none cut off

What a model writes at temperature 1 is distributed as it believes its training text to be. A text
that ends before `T` tokens is followed by another: the end-of-text token stops nothing.

Source: the idea is that of LLM-QAT, arXiv 2305.17888, and of Self-calibration, arXiv 2410.17170.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig

from secateur.data.tokens import (
    Provenance,
    TokenBatch,
    check_ids,
    check_size,
    check_total,
    make_batch,
    token_sha256,
)
from secateur.data.windows import Beginning
from secateur.errors import DataError
from secateur.machine.accelerator import seeded
from secateur.machine.waiting import doing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SELF = "self"
"""Name of this source."""

BEGINNING = 16
"""Tokens that more text begins with, taken out of a sequence that there is."""
AT_ONCE = 64
"""Sequences that are written side by side at most, which bounds the memory that it takes."""


def self_written(
    model: PreTrainedModel,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    beginning: Beginning | None = None,
) -> TokenBatch:
    """Sequences of the model's own, int64 [samples, sequence_length], with their protocol.

    Args:
        model: the whole dense model, on the device that computes.
        samples, sequence_length: how many, of how many tokens.
        seed: of the draws; the global generators are left as they were.
        beginning: of every window of text, by the model's tokenizer; None without one.

    Raises:
        DataError: a size makes no batch, or the model cannot write.
    """
    check_size("samples", samples, least=1)
    check_size("sequence_length", sequence_length, least=2)
    check_total(samples, sequence_length)
    if beginning is not None:
        beginning.room(sequence_length, where=SELF)
    with seeded(seed, model.device), torch.no_grad():
        first = _begin(model, samples, beginning)  # [samples, tokens]
        written = [_continue(model, part, sequence_length) for part in torch.split(first, AT_ONCE)]
    origin = {"model": model.name_or_path, "temperature": "1"}
    return make_batch(
        torch.cat(written),
        Provenance(SELF, "self", origin, "written", seed=seed, beginning=beginning),
        vocabulary=model.get_input_embeddings().weight.shape[0],
    )


def with_more(
    model: PreTrainedModel,
    batch: TokenBatch,
    more: int,
    seed: int,
    beginning: Beginning | None = None,
) -> TokenBatch:
    """`batch` behind `more` sequences that the dense model writes, beginning as parts of it do.

    Args:
        model: the whole dense model, on the device that computes.
        batch: the sequences that there are; they come last.
        more: how many to write.
        seed: of the draws; the global generators are left as they were.
        beginning: of every window of text, by the model's tokenizer; None without one.

    Raises:
        DataError: so many make no batch, or the model cannot write.
    """
    length = batch.input_ids.shape[1]
    check_total(more + len(batch.input_ids), length)
    prefix = () if beginning is None else beginning.of_each
    room = length if beginning is None else beginning.room(length, where=SELF)
    taken = min(BEGINNING, room - 1)
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(batch.input_ids), (more, 1), generator=chance)
    begin = len(prefix) + torch.randint(room - taken + 1, (more, 1), generator=chance)
    first = batch.input_ids[rows, begin + torch.arange(taken)]  # [more, taken]
    if beginning is not None:
        first = beginning.put_before(first)  # [more, prefix + taken]
    with seeded(seed, model.device), torch.no_grad():
        written = [_continue(model, part, length) for part in torch.split(first, AT_ONCE)]
    both = torch.cat([*(part.cpu() for part in written), batch.input_ids])
    behind = " behind the beginning" if prefix else ""
    told = {"written": f"{more} more by the dense model, from {taken} tokens of these{behind}"}
    protocol = batch.protocol.model_copy(
        update={
            "sequences": len(both),
            "origin": {**batch.protocol.origin, **told},
            "token_sha256": token_sha256(both),
        }
    )
    return TokenBatch(both, protocol, batch.notices)


def _begin(model: PreTrainedModel, samples: int, beginning: Beginning | None) -> Tensor:
    """What every sequence begins with, int64 [samples, tokens]."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if beginning is not None and beginning.of_each:
        return beginning.put_before(torch.empty(samples, 0, dtype=torch.int64))
    begin = model.config.get_text_config(decoder=True).bos_token_id
    left_out = beginning is not None and beginning.prefix and beginning.bos == "none"
    if isinstance(begin, int) and 0 <= begin < vocabulary and not left_out:
        return torch.full((samples, 1), begin)
    return torch.randint(vocabulary, (samples, 1))


def _continue(model: PreTrainedModel, first: Tensor, length: int) -> Tensor:
    """Draw on from [sequences, tokens] to [sequences, length].

    Raises:
        DataError: the model has no embedding for a token, or does not generate.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    check_ids(first, where=SELF, vocabulary=vocabulary)
    draws = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=length,
        eos_token_id=vocabulary,  # no token ends a sequence; None would stand for the model's own
        pad_token_id=0,  # never needed, and not naming one is warned of
    )
    first = first.to(model.device)
    with doing("the dense model writes text"), _without_settings(model):
        written: Tensor = model.generate(
            first, attention_mask=torch.ones_like(first), generation_config=draws
        )
    return written


@contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """Set a model's own generation settings aside: `generate` lays them under those it is given.

    Penalties, forced and suppressed tokens, other ways to search, kinds of cache and lengths are
    so all left out, whatever they are called.

    Raises:
        DataError: the model does not generate.
    """
    if not model.can_generate():
        raise DataError(f"{type(model).__name__} writes no text", wanted="a text to calibrate on")
    settings = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
