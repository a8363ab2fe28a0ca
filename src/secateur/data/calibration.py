"""Calibration: the few sequences whose activations and gradients steer the pruning.

    documents    the papers' C4 protocol: documents in random order, those not longer than T tokens
                 skipped, one uniformly random window of T tokens from each
    joined       all documents as one stream, cut into windows of T, of which N at random
    given        tokens from a safetensors file or a tensor, verbatim

`N` is `samples` (128 in the papers), `T` is `sequence_length` (2048). The papers' scripts draw
documents with replacement and never the last window of one; here each document is drawn once and
every window can be. Random choices come from a generator of their own, seeded by `seed`; with the
same seed, a smaller batch is the beginning of a larger one.

Source: arXiv 2210.17323 (GPTQ), section 4, and arXiv 2306.11695 (Wanda), section 4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from secateur.data.builtin import BUILTIN
from secateur.data.files import Reading
from secateur.data.texts import read_documents, without_columns
from secateur.data.token_files import given_tokens, is_token_file
from secateur.data.tokens import Provenance, TokenBatch, check_size, check_total, make_batch
from secateur.data.windows import (
    JOINER,
    Tokenizer,
    chat_renderer,
    cut,
    join_documents,
    need_tokenizer,
    require_windows,
    tokenise,
)
from secateur.errors import DataError, closest
from secateur.waiting import doing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sampling = Literal["auto", "documents", "joined"]

CHARACTER_LIMIT = 16_000_000
"""The most text that "joined" tokenises: some four million tokens, more than all of WikiText-2.

Of a larger corpus, documents in random order are joined up to here. A tokenizer needs up to a
microsecond and two hundred bytes per character.
"""


@dataclass(frozen=True)
class Draw:
    """What is drawn from a source of calibration text.

    Attributes:
        samples: how many sequences; given tokens may be fewer, with a notice.
        sequence_length: tokens in each; given ones may be shorter, and longer ones are clipped,
            with a notice.
        seed: of the random choice; given tokens leave nothing to choose.
        sampling: "documents" or "joined", as at the head of this module; "auto" takes "documents"
            for C4 and the built-in text, "joined" for everything else. Given tokens ignore it.
        column: of a file of records, to read; None reads "text", or conversations.
    """

    samples: int
    sequence_length: int
    seed: int = 0
    sampling: Sampling = "auto"
    column: str | None = None


@doing("reading the calibration text")
def load_calibration(
    source: str | Tensor,
    draw: Draw,
    *,
    tokenizer: Tokenizer,
    vocabulary: int | None = None,
) -> TokenBatch:
    """Calibration sequences, int64 [samples, sequence_length], with their protocol and notices.

    Args:
        source: text as `read_documents` takes it (the training split of a hub data set), a
            `.safetensors` file with `input_ids`, or a tensor of them [sequences, length].
        draw: how many sequences of how many tokens, and how they are chosen.
        tokenizer: turns text into tokens, or why there is none; not needed for given tokens.
        vocabulary: rows of the model's embedding, to check ids against; None checks none.

    Raises:
        DataError: the source cannot be read, has too little text, or ids beyond the vocabulary.
    """
    samples, sequence_length, sampling = draw.samples, draw.sequence_length, draw.sampling
    check_size("samples", samples, least=1)
    check_size("sequence_length", sequence_length, least=1)
    check_total(samples, sequence_length)
    if isinstance(source, Tensor) or is_token_file(source):
        if draw.column is not None:
            raise without_columns(draw.column, source)
        return given_tokens(
            source, sequences=samples, sequence_length=sequence_length, vocabulary=vocabulary
        )
    if sampling not in get_args(Sampling):
        raise DataError(f"sampling {sampling!r}", wanted=closest(sampling, get_args(Sampling)))
    tokenizer = need_tokenizer(tokenizer, source)
    reading = Reading(draw.column, chat_renderer(tokenizer), option="--column NAME")
    documents = read_documents(source, "train", reading)
    if sampling == "auto":
        sampling = "documents" if source in ("c4", BUILTIN) else "joined"
    windows_of = _from_documents if sampling == "documents" else _from_stream
    chance = random.Random(draw.seed)
    drawn = windows_of(documents.texts, tokenizer, samples, sequence_length, chance)
    require_windows(
        drawn.windows,
        samples,
        where=source,
        tokens=drawn.tokens,
        hint=("fewer samples, " if samples > 1 else "") + "a shorter sequence length, or more text",
    )
    provenance = Provenance(
        source,
        documents.kind,
        documents.origin,
        sampling,
        joiner=JOINER if sampling == "joined" else None,
        seed=draw.seed,
        text_characters=drawn.characters,
        text_tokens=drawn.tokens,
        tokenizer=tokenizer,
    )
    notices = (*documents.notices, *drawn.notices)
    return make_batch(drawn.windows, provenance, vocabulary=vocabulary, notices=notices)


@dataclass(frozen=True)
class _Drawn:
    """Windows [up to N, T], and how much text was tokenised to find them."""

    windows: Tensor
    characters: int
    tokens: int
    notices: tuple[str, ...] = ()


def _from_documents(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    length: int,
    chance: random.Random,
) -> _Drawn:
    """One window from each of the first `samples` documents, in random order, that are longer."""
    windows = torch.empty(samples, length, dtype=torch.int64)  # [N, T]
    drawn = characters = tokens = 0
    for index in _shuffled(len(texts), chance):
        document = tokenise(texts[index], tokenizer)  # [tokens]
        characters += len(texts[index])
        tokens += len(document)
        if len(document) <= length:
            continue
        start = chance.randint(0, len(document) - length)
        windows[drawn] = document[start : start + length]
        drawn += 1
        if drawn == samples:
            break
    return _Drawn(windows[:drawn], characters, tokens)


def _from_stream(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    length: int,
    chance: random.Random,
) -> _Drawn:
    """`samples` windows at random out of all that the joined text has."""
    notices: tuple[str, ...] = ()
    text, whole = join_documents(texts, CHARACTER_LIMIT)
    if not whole:
        order = _shuffled(len(texts), chance)
        text, _ = join_documents((texts[index] for index in order), CHARACTER_LIMIT)
        notices = (
            f"the text is longer than {CHARACTER_LIMIT:,} characters: as many are used, of its "
            f"{len(texts):,} documents in random order",
        )
    stream = tokenise(text, tokenizer)  # [tokens]
    windows = cut(stream, length)  # [all, T]
    chosen = windows[_shuffled(len(windows), chance)[:samples]]  # [up to N, T]
    return _Drawn(chosen, len(text), len(stream), notices)


def _shuffled(count: int, chance: random.Random) -> list[int]:
    """0 to count - 1 in random order."""
    order = list(range(count))
    chance.shuffle(order)
    return order
