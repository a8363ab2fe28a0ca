"""Calibration: the few sequences whose activations and gradients steer the pruning.

    documents    the papers' C4 protocol: documents in random order, those not longer than T tokens
                 skipped, one uniformly random window of T tokens from each
    joined       all documents as one stream, cut into windows of T, of which N at random
    excerpts     stretches of long and of short documents as one stream, a window of each: what the
                 sources of a mixture are drawn by (mixture.py, excerpts.py)
    given        tokens from a safetensors file or a tensor, verbatim

`N` is `samples` (128 in the papers), `T` is `sequence_length` (2048). The papers' scripts draw
documents with replacement and never the last window of one; here each document is drawn once and
every window can be. Random choices come from a generator of their own, seeded by `seed`; with the
same seed, a smaller batch is the beginning of a larger one. What the windows begin with, and how
much of `T` is left for text, says `windows.py`.

Source: arXiv 2210.17323 (GPTQ), section 4, and arXiv 2306.11695 (Wanda), section 4.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.data.builtin import BUILTIN
from secateur.data.excerpts import (
    STRETCH_WINDOWS,
    USUAL_CHARACTERS,
    choose_documents,
    draw_excerpts,
    spread_evenly,
)
from secateur.data.files import Reading
from secateur.data.texts import read_documents, without_columns
from secateur.data.token_files import given_tokens, is_token_file
from secateur.data.tokens import Provenance, TokenBatch, check_size, check_total, make_batch
from secateur.data.windows import (
    JOINER,
    Beginning,
    Tokenizer,
    chat_renderer,
    cut,
    join_documents,
    need_tokenizer,
    require_windows,
)
from secateur.errors import DataError, closest
from secateur.machine.waiting import doing
from secateur.recipe import Bos

Sampling = Literal["auto", "documents", "joined", "excerpts"]

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
        sampling: "documents", "joined" or "excerpts", as at the head of this module; "auto" takes
            "documents" for C4 and the built-in text, "joined" for everything else. Given tokens
            ignore it.
        column: of a file of records, to read; None reads "text", or conversations.
        bos: where the tokens stand that the tokenizer puts before any text; of given ones nowhere.
    """

    samples: int
    sequence_length: int
    seed: int = 0
    sampling: Sampling = "auto"
    column: str | None = None
    bos: Bos = "window"


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
    beginning = Beginning.of(tokenizer, draw.bos)
    room = beginning.room(sequence_length, where=source)
    reading = Reading(draw.column, chat_renderer(tokenizer), option="--column NAME")
    documents = read_documents(source, "train", reading)
    if sampling == "auto":
        sampling = "documents" if source in ("c4", BUILTIN) else "joined"
    parts_of = WAYS[sampling]
    chance = random.Random(draw.seed)

    def tokens_of(text: str) -> Tensor:
        return beginning.tokenise(text, tokenizer)

    drawn = parts_of(documents.texts, tokens_of, samples, room, chance)
    windows = beginning.put_before(drawn.parts)  # [up to N, T]
    require_windows(
        windows,
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
        joiner=None if sampling == "documents" else JOINER,
        seed=draw.seed,
        text_characters=drawn.characters,
        text_tokens=drawn.tokens,
        tokenizer=tokenizer,
        beginning=beginning,
    )
    notices = (*documents.notices, *drawn.notices)
    return make_batch(windows, provenance, vocabulary=vocabulary, notices=notices)


@dataclass(frozen=True)
class _Drawn:
    """The text in the windows [up to N, room], and how much was tokenised to find it."""

    parts: Tensor
    characters: int
    tokens: int
    notices: tuple[str, ...] = ()


def _from_documents(
    texts: Sequence[str],
    tokens_of: Callable[[str], Tensor],
    samples: int,
    room: int,
    chance: random.Random,
) -> _Drawn:
    """One part from each of the first `samples` documents, in random order, that are longer."""
    parts = torch.empty(samples, room, dtype=torch.int64)  # [N, room]
    drawn = characters = tokens = 0
    for index in _shuffled(len(texts), chance):
        document = tokens_of(texts[index])  # [tokens]
        characters += len(texts[index])
        tokens += len(document)
        if len(document) <= room:
            continue
        start = chance.randint(0, len(document) - room)
        parts[drawn] = document[start : start + room]
        drawn += 1
        if drawn == samples:
            break
    return _Drawn(parts[:drawn], characters, tokens)


def _from_stream(
    texts: Sequence[str],
    tokens_of: Callable[[str], Tensor],
    samples: int,
    room: int,
    chance: random.Random,
) -> _Drawn:
    """`samples` parts at random out of all that the joined text has."""
    notices: tuple[str, ...] = ()
    text, whole = join_documents(texts, CHARACTER_LIMIT)
    if not whole:
        order = _shuffled(len(texts), chance)
        text, _ = join_documents((texts[index] for index in order), CHARACTER_LIMIT)
        notices = (
            f"the text is longer than {CHARACTER_LIMIT:,} characters: as many are used, of its "
            f"{len(texts):,} documents in random order",
        )
    stream = tokens_of(text)  # [tokens]
    parts = cut(stream, room)  # [all, room]
    chosen = parts[_shuffled(len(parts), chance)[:samples]]  # [up to N, room]
    return _Drawn(chosen, len(text), len(stream), notices)


def _from_excerpts(
    texts: Sequence[str],
    tokens_of: Callable[[str], Tensor],
    samples: int,
    room: int,
    chance: random.Random,
) -> _Drawn:
    """`samples` parts, one from each of as many stretches, more of them where they are short."""
    documents = choose_documents(texts, CHARACTER_LIMIT, chance)
    longest = min(STRETCH_WINDOWS * room * USUAL_CHARACTERS, CHARACTER_LIMIT // samples)
    excerpts = list(draw_excerpts(documents, JOINER, longest, samples, chance))
    used = samples
    while True:
        text = JOINER.join(excerpts[:used])
        stream = tokens_of(text)  # [tokens]
        parts = cut(stream, room)  # [all, room]
        if len(parts) >= samples or used >= len(excerpts):
            break
        used *= 2
    if len(parts) >= samples:
        parts = parts[spread_evenly(len(parts), samples, chance)]  # [N, room]
    return _Drawn(parts, len(text), len(stream))


WAYS = {"documents": _from_documents, "joined": _from_stream, "excerpts": _from_excerpts}
"""Sampling -> the function that draws windows so."""


def _shuffled(count: int, chance: random.Random) -> list[int]:
    """0 to count - 1 in random order."""
    order = list(range(count))
    chance.shuffle(order)
    return order
