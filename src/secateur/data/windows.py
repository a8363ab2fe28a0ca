"""Documents -> one stream of tokens -> windows: the path that calibration and held-out share.

    stream  = tokenise(JOINER.join(documents))        [tokens]
    windows = stream[: n * T].view(n, T)              n = tokens // T, the tail dropped

Joining by blank lines and tokenising once, special tokens at the start of the stream only, is what
the published GPTQ, SparseGPT and Wanda scripts do. A special token spelt out in the text (`<unk>`
in the tokenised form of WikiText-2) becomes that token, as it does there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from secateur.data.files import Render
from secateur.errors import DataError, reason

JOINER = "\n\n"
"""What stands between two documents."""


def join_documents(texts: Iterable[str], limit: int | None = None) -> tuple[str, bool]:
    """Documents joined by blank lines, cut at `limit` characters, and whether that is all of them.

    Reads no further into `texts` than it needs.
    """
    pieces: list[str] = []
    characters = -len(JOINER)
    for text in texts:
        pieces.append(text)
        characters += len(JOINER) + len(text)
        if limit is not None and characters > limit:
            return JOINER.join(pieces)[:limit], False
    return JOINER.join(pieces), True


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Tokens of one text with the tokenizer's default special tokens, int64 [tokens].

    The text may be longer than the model can read, since it is cut into windows afterwards;
    `verbose=False` is the tokenizer's own way to be told so.

    Raises:
        DataError: the tokenizer fails.
    """
    try:
        encoded = tokenizer(text, verbose=False, return_attention_mask=False)
        return torch.tensor(encoded["input_ids"], dtype=torch.int64)  # [tokens]
    except BaseException as error:
        if isinstance(error, MemoryError) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise  # an interruption; a panic of the compiled tokenizer is no Exception either
        raise DataError(
            f"the tokenizer fails on the text ({reason(error)})",
            where=tokenizer.name_or_path or type(tokenizer).__name__,
            wanted="a tokenizer that can read any text",
            hint="the tokenizer files that belong to the model",
        ) from error


def cut(stream: Tensor, length: int) -> Tensor:
    """Non-overlapping windows [tokens // length, length] of a stream [tokens]; the tail dropped."""
    count = len(stream) // length
    return stream[: count * length].view(count, length)


def require_windows(windows: Tensor, least: int, *, where: str, tokens: int, hint: str) -> None:
    """Prove that the text gave as many windows [count, length] as were asked for.

    Args:
        least: how many it must be.
        where: the source.
        tokens: how many tokens the windows were cut from.
        hint: what to try.

    Raises:
        DataError: there are fewer.
    """
    count, length = windows.shape
    if count < least:
        raise DataError(
            f"only {count} windows of {length} tokens among {tokens:,} tokens",
            where=where,
            wanted=f"{least} windows",
            hint=hint,
        )


Tokenizer: TypeAlias = PreTrainedTokenizerBase | DataError | None
"""A tokenizer, or why there is none: the fault that reading it met, or None if nobody gave one."""


def need_tokenizer(tokenizer: Tokenizer, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, which text cannot do without.

    Raises:
        DataError: there is none.
    """
    if isinstance(tokenizer, DataError):
        raise tokenizer
    if tokenizer is None:
        raise DataError(
            "no tokenizer was given, to turn text into tokens",
            where=source,
            wanted="tokenizer=AutoTokenizer.from_pretrained(...), or token ids",
        )
    return tokenizer


def chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Render | None:
    """What makes text of the messages of a chat, by the tokenizer's own template; None without one.

    A beginning-of-text token is left out where the tokenizer puts one before any text anyway.
    """
    if not tokenizer.chat_template:
        return None
    begin = tokenizer.bos_token or ""
    twice = begin and tokenise("a", tokenizer)[:1].tolist() == [tokenizer.bos_token_id]

    def render(messages: list[dict[str, Any]]) -> str:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        return text.removeprefix(begin) if twice else text

    return render
