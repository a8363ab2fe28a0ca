"""Held-out text: the fixed windows that perplexity is measured on.

The test documents are joined by blank lines into one stream, tokenised once and cut into windows of
`sequence_length` from the start; the tail is dropped. What every window begins with is the setting
`bos`, see `windows.py`. Nothing is random, so that every model sees the same tokens.

Source: the WikiText-2 protocol of the published GPTQ, SparseGPT and Wanda scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from secateur.data.files import Reading
from secateur.data.texts import read_documents
from secateur.data.token_files import given_tokens, is_token_file
from secateur.data.tokens import Provenance, TokenBatch, check_size, make_batch
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
from secateur.errors import DataError
from secateur.machine.limits import MOST_TOKENS, at_most
from secateur.machine.waiting import doing
from secateur.recipe import Bos

CHARACTERS_PER_TOKEN = 8
"""Characters that a token is first taken to need, rather many; if too few, twice as many."""
TOKENS_TO_SPARE = 256
"""Tokens at the end of cut text that may differ from those of the whole text."""


@doing("reading the held-out text")
def load_heldout(
    source: str | Tensor,
    *,
    tokenizer: Tokenizer,
    sequence_length: int,
    windows: int | None,
    vocabulary: int | None = None,
    bos: Bos = "window",
) -> TokenBatch:
    """The first windows of held-out text, int64 [windows, sequence_length], with their protocol.

    Args:
        source: text as `read_documents` takes it (the test split of a hub data set), a
            `.safetensors` file with `input_ids`, or a tensor of them [sequences, length].
        tokenizer: turns text into tokens, or why there is none; not needed for given tokens.
        sequence_length: tokens per window, at least 2: the first of a window is never predicted.
        windows: how many at most; None takes all. A text with fewer gives those, with a notice.
        vocabulary: rows of the model's embedding, to check ids against; None checks none.
        bos: where the tokens stand that the tokenizer puts before any text; of given ones nowhere.

    Raises:
        DataError: the source cannot be read, is too short for one window, or has ids beyond the
            vocabulary.
    """
    check_size("sequence_length", sequence_length, least=2)
    at_most(MOST_TOKENS, sequence_length, "tokens", where="sequence_length", fault=DataError)
    check_size("windows", windows, least=1)
    if isinstance(source, Tensor) or is_token_file(source):
        return given_tokens(
            source, sequences=windows, sequence_length=sequence_length, vocabulary=vocabulary
        )
    tokenizer = need_tokenizer(tokenizer, source)
    beginning = Beginning.of(tokenizer, bos)
    room = beginning.room(sequence_length, where=source)
    documents = read_documents(source, "test", Reading(render=chat_renderer(tokenizer)))

    def tokens_of(text: str) -> Tensor:
        return beginning.tokenise(text, tokenizer)

    tokens = None if windows is None else windows * room
    stream, characters = _first_tokens(documents.texts, tokens_of, tokens)
    held = cut(stream, room)[:windows]  # [windows, room]
    held = beginning.put_before(held)  # [windows, T]
    require_windows(
        held,
        1,
        where=source,
        tokens=len(stream),
        hint="a shorter sequence length, or more text",
    )
    notices = documents.notices
    if windows is not None and len(held) < windows:
        notices += (f"{source} holds {len(held)} windows, fewer than the {windows} asked for",)
    provenance = Provenance(
        source,
        documents.kind,
        documents.origin,
        "windows",
        joiner=JOINER,
        text_characters=characters,
        text_tokens=len(stream),
        tokenizer=tokenizer,
        beginning=beginning,
    )
    return make_batch(held, provenance, vocabulary=vocabulary, notices=notices)


def _first_tokens(
    texts: Sequence[str], tokens_of: Callable[[str], Tensor], least: int | None
) -> tuple[Tensor, int]:
    """The joined text's first tokens, at least `least` (None: all) if it has them; int64 [tokens].

    A shard of C4 has a hundred million characters, of which a few windows need a hundredth: only
    the beginning is tokenised, with so much to spare that the windows are the same as of the whole.
    Also says how many characters that was.
    """
    limit = None if least is None else (least + TOKENS_TO_SPARE) * CHARACTERS_PER_TOKEN
    while True:
        text, whole = join_documents(texts, limit)
        stream = tokens_of(text)
        if limit is None or least is None or whole or len(stream) >= least + TOKENS_TO_SPARE:
            return stream, len(text)
        limit *= 2
