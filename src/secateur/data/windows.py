"""Documents -> one stream of tokens -> windows: the path that calibration and held-out share.

    stream  = tokenise(JOINER.join(documents))        [tokens]
    parts   = stream[: n * R].view(n, R)              n = tokens // R, the tail dropped
    windows = [prefix, part] for every part           [n, T]

`prefix` is what the tokenizer puts before any text: nothing (Qwen, SmolLM2), a token (Llama, Gemma)
or several (GLM). Where it stands is the setting `bos`:

    window   before every part, R = T - len(prefix): as models are trained, and as some need it
    stream   before the stream only, R = T: what the published GPTQ, SparseGPT and Wanda scripts do
    none     nowhere, R = T

Where the tokenizer adds nothing the three are one. What it puts behind a text belongs to no window,
but stands at the end of a stream in `stream`, as in the scripts. A special token spelt out in the
text (`<unk>` in the tokenised form of WikiText-2) becomes that token, as it does there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from secateur.data.files import Render
from secateur.errors import DataError, reason
from secateur.recipe import Bos

JOINER = "\n\n"
"""What stands between two documents."""
_PROBES = ("a", "0", ".")
"""Texts that show what a tokenizer adds: the first that is a token at all serves."""


@dataclass(frozen=True)
class Beginning:
    """What windows of text begin with.

    Attributes:
        bos: where the prefix stands, as at the head of this module.
        prefix: ids of the tokens that the tokenizer puts before any text; none for many.
    """

    bos: Bos
    prefix: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, bos: Bos) -> Beginning:
        """The beginning that a tokenizer gives; its settings are not believed, as Gemma's
        `add_bos_token` says False and it adds one.

        Raises:
            DataError: the tokenizer fails.
        """
        for probe in _PROBES:
            whole = tokenise(probe, tokenizer).tolist()
            bare = tokenise(probe, tokenizer, special_tokens=False).tolist()
            if bare:
                return cls(bos, _before(bare, whole, frozenset(tokenizer.all_special_ids)))
        return cls(bos, ())

    @property
    def of_each(self) -> tuple[int, ...]:
        """The ids that every window begins with."""
        return self.prefix if self.bos == "window" else ()

    def room(self, length: int, *, where: str) -> int:
        """Tokens of text in a window of `length` tokens.

        Args:
            length: tokens in a window.
            where: the source.

        Raises:
            DataError: there are none.
        """
        taken = len(self.of_each)
        if length <= taken:
            raise DataError(
                f"a window of {length} tokens has no room for text: the tokenizer begins every "
                f"text with {taken}",
                where=where,
                wanted=f"a sequence length of at least {taken + 1}",
            )
        return length - taken

    def tokenise(self, text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Tokens to cut windows from, int64 [tokens]; special tokens only if bos is stream.

        Raises:
            DataError: the tokenizer fails.
        """
        return tokenise(text, tokenizer, special_tokens=self.bos == "stream")

    def put_before(self, parts: Tensor) -> Tensor:
        """Parts of text [count, room] as the windows [count, length] that they are in."""
        prefix = torch.tensor(self.of_each, dtype=parts.dtype)
        return torch.cat([prefix.expand(len(parts), -1), parts], dim=1)


def adds_nothing(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts nothing around a text, so that `bos` makes no difference.

    Raises:
        DataError: the tokenizer fails.
    """
    return all(
        torch.equal(tokenise(probe, tokenizer), tokenise(probe, tokenizer, special_tokens=False))
        for probe in _PROBES
    )


def _before(bare: list[int], whole: list[int], special: frozenset[int]) -> tuple[int, ...]:
    """What stands in `whole` before `bare`; if that is not in it, its first special tokens."""
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return tuple(takewhile(special.__contains__, whole))


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


def tokenise(
    text: str, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool = True
) -> Tensor:
    """Tokens of one text, int64 [tokens].

    The text may be longer than the model can read, since it is cut into windows afterwards;
    `verbose=False` is the tokenizer's own way to be told so.

    Args:
        text: the text.
        tokenizer: turns it into tokens.
        special_tokens: whether with those that the tokenizer puts around any text.

    Raises:
        DataError: the tokenizer fails.
    """
    options = {} if special_tokens else {"add_special_tokens": False}
    try:
        encoded = tokenizer(text, verbose=False, return_attention_mask=False, **options)
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

    What the tokenizer puts before any text is left out where the template spells it out too: it
    stands where the setting `bos` says, and never twice.
    """
    if not tokenizer.chat_template:
        return None
    spelt = [tokenizer.decode([one]) for one in Beginning.of(tokenizer, "window").prefix]

    def render(messages: list[dict[str, Any]]) -> str:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        for token in spelt:
            text = text.removeprefix(token)
        return text

    return render
