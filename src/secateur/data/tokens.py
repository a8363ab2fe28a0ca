"""A batch of token sequences and the protocol that made it.

Most numbers in this field that cannot be reproduced differ in their data: another split, another
joiner, another window. So no batch exists without its `Protocol`, which is written to run.json, and
the hash in it tells in one comparison whether two runs saw the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from secateur.data.texts import TextKind
from secateur.data.windows import Beginning
from secateur.errors import DataError
from secateur.machine.limits import MOST_TOKENS, at_most
from secateur.recipe import Bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Kind = TextKind | Literal["safetensors", "tensor", "self", "mixture"]
Sampled = Literal["documents", "joined", "excerpts", "windows", "given", "written", "mixed"]


class Protocol(BaseModel):
    """How a batch of tokens came about: recorded beside every number measured on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="the source as it was asked for")
    kind: Kind = Field(description="what the source was")
    origin: dict[str, str] = Field(description="path, or hub repository and split, and counts")
    sampling: Sampled = Field(
        description="documents: one random window from each long document; joined: random "
        "windows of one stream; excerpts: random windows of stretches of long and short documents; "
        "windows: its first windows; given: tokens used verbatim; written: drawn from the dense "
        "model itself; mixed: as every part says"
    )
    joiner: str | None = Field(description="what stood between documents, if they were joined")
    sequences: int
    sequence_length: int = Field(description="tokens per sequence")
    seed: int | None = Field(description="of the random choice, if there was one")
    text_characters: int | None = Field(description="characters of text that were tokenised")
    text_tokens: int | None = Field(description="tokens they gave, of which the batch is a part")
    token_sha256: str = Field(description="of the batch as little-endian int32, row by row")
    tokenizer: str | None = Field(description="class and name of the tokenizer")
    bos: Bos | None = Field(
        default=None, description="where the tokenizer's prefix stands; null for given tokens"
    )
    prefix: tuple[int, ...] | None = Field(
        default=None,
        description="ids that the tokenizer puts before any text, wherever they stand here; null "
        "for given tokens, and in records that are older than this field",
    )
    parts: tuple[Protocol, ...] = Field(
        default=(), description="of a mixture, every source by itself; else none"
    )

    @model_validator(mode="before")
    @classmethod
    def _brought_forward(cls, values: Any) -> Any:
        """Text that an earlier version cut had the prefix before the stream only."""
        if isinstance(values, Mapping) and "bos" not in values:
            given = values.get("sampling") == "given"
            return {**values, "bos": None if given else "stream"}
        return values

    @property
    def sha256(self) -> str:
        """Tells whether two runs saw the same."""
        return self.token_sha256

    @property
    def beginning(self) -> str:
        """What the windows begin with, in a few words; none where the tokenizer adds nothing."""
        if not self.prefix or self.bos is None:
            return ""
        return {
            "window": "BOS in every window", "stream": "BOS before the text only", "none": "no BOS"
        }[self.bos]  # fmt: skip


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences for a model to read.

    Args:
        input_ids: int64 [sequences, sequence_length], on the CPU.
        protocol: how they were made.
        notices: what a person should be told, one line each; usually none.
    """

    input_ids: Tensor
    protocol: Protocol
    notices: tuple[str, ...] = ()

    @property
    def inputs(self) -> Tensor:
        """What the model reads."""
        return self.input_ids

    @property
    def labels(self) -> None:
        """Text has none: the next token is."""
        return


def token_sha256(input_ids: Tensor) -> str:
    """SHA-256 (hexadecimal) of tokens [sequences, length] as contiguous little-endian int32."""
    return hashlib.sha256(input_ids.cpu().numpy().astype("<i4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where tokens come from; what it means stands on the fields of `Protocol`."""

    source: str
    kind: Kind
    origin: dict[str, str]
    sampling: Sampled
    joiner: str | None = None
    seed: int | None = None
    text_characters: int | None = None
    text_tokens: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    beginning: Beginning | None = None


def make_batch(
    tokens: Tensor,
    provenance: Provenance,
    *,
    vocabulary: int | None,
    notices: tuple[str, ...] = (),
) -> TokenBatch:
    """The only way a batch is made: ids checked, copied, hashed, and their protocol written down.

    Args:
        tokens: [sequences, length], any integer type, not empty.
        provenance: where they come from.
        vocabulary: rows of the model's embedding; None when no model is known.
        notices: what a person should be told, one line each.

    Raises:
        DataError: an id has no embedding.
    """
    copied = tokens.detach().to("cpu", torch.int64, copy=True)
    input_ids = copied.contiguous()  # [sequences, length]
    check_ids(input_ids, where=provenance.source, vocabulary=vocabulary)
    tokenizer, beginning = provenance.tokenizer, provenance.beginning
    protocol = Protocol(
        source=provenance.source,
        kind=provenance.kind,
        origin=provenance.origin,
        sampling=provenance.sampling,
        joiner=provenance.joiner,
        sequences=input_ids.shape[0],
        sequence_length=input_ids.shape[1],
        seed=provenance.seed,
        text_characters=provenance.text_characters,
        text_tokens=provenance.text_tokens,
        token_sha256=token_sha256(input_ids),
        tokenizer=None
        if tokenizer is None
        else f"{type(tokenizer).__name__} {tokenizer.name_or_path}".strip(),
        bos=None if beginning is None else beginning.bos,
        prefix=None if beginning is None else beginning.prefix,
    )
    return TokenBatch(input_ids, protocol, notices)


def check_ids(input_ids: Tensor, *, where: str, vocabulary: int | None) -> None:
    """Prove that the model has an embedding for every id, or that int32 holds it.

    Args:
        input_ids: int64 [sequences, tokens].
        where: their source.
        vocabulary: rows of the model's embedding; None when no model is known.

    Raises:
        DataError: an id has none.
    """
    limit = 2**31 if vocabulary is None else vocabulary
    wrong = ((input_ids < 0) | (input_ids >= limit)).nonzero()  # [faults, 2]
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise DataError(
            f"token id {int(input_ids[row, column])} at sequence {row}, position {column}",
            where=where,
            wanted=f"ids from 0 to {limit - 1}"
            + (", what int32 holds" if vocabulary is None else ", the model's vocabulary"),
            hint=None if vocabulary is None else "the tokenizer that belongs to the model",
        )


def check_size(name: str, value: int | None, *, least: int) -> None:
    """Refuse a count of samples, windows or tokens that makes no batch; None means all.

    Raises:
        DataError: `value` is below `least`.
    """
    if value is not None and value < least:
        raise DataError(f"{name} is {value}", wanted=f"a whole number of at least {least}")


def check_total(sequences: int, length: int) -> None:
    """Refuse more tokens than a machine holds, before any of them is made.

    Raises:
        DataError: they are.
    """
    where = f"sequences of {length} tokens"
    at_most(MOST_TOKENS, sequences * length, "tokens", where=where, fault=DataError)
