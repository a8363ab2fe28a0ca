"""Tokens that somebody else made, used verbatim: a safetensors file, a tensor, or a batch.

The file holds `input_ids` [sequences, length] of any integer type. It is how two programs are made
to see the same calibration tokens, and how one can prune without a tokenizer. Every token counts in
every statistic and every loss, so that an `attention_mask` beside them must be all ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.data.texts import locate_text
from secateur.data.tokens import Provenance, TokenBatch, make_batch
from secateur.errors import DataError, some, unreadable

TENSOR = "input_ids"
"""Name of the tokens in a file."""
PADDING_MASK = "attention_mask"
"""Name of what says which tokens are padding."""


@dataclass(frozen=True)
class _Given:
    """Tokens that were given.

    Attributes:
        tokens: those asked for, [sequences, length].
        sequences: how many there were.
        length: of each.
        others: names of what else lies in the file.
    """

    tokens: Tensor
    sequences: int
    length: int
    others: tuple[str, ...] = ()


def is_token_file(source: str) -> bool:
    """Whether a source is named like a file of tokens, rather than of text."""
    return Path(source).suffix.lower() == ".safetensors"


def given_tokens(
    source: str | Tensor, *, sequences: int | None, sequence_length: int, vocabulary: int | None
) -> TokenBatch:
    """The first `sequences` (None: all) sequences, clipped to `sequence_length`.

    Fewer or shorter sequences than asked for are used as they are, with a notice.

    Raises:
        DataError: the file is damaged, has no `input_ids`, or they are not integers
            [sequences, length] within the vocabulary.
    """
    if isinstance(source, Tensor):
        name, origin = "the given tensor", {}
        given = _first(source, tuple(source.shape), name, sequences, sequence_length)
    else:
        name, origin = source, {"path": source}
        given = _read(source, sequences, sequence_length)
    tokens, held, length = given.tokens, given.sequences, given.length
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise DataError(f"{TENSOR} is {tokens.dtype}", where=name, wanted="an integer type")
    notices = []
    if given.others:
        notices.append(f"{name} holds {some(given.others)} beside {TENSOR}, which nothing uses")
    if sequences is not None and held < sequences:
        notices.append(f"{name} holds {held} sequences, fewer than the {sequences} asked for")
    if length > sequence_length:
        notices.append(f"sequences of {length} tokens in {name} are clipped to {sequence_length}")
    if length < sequence_length:
        notices.append(
            f"{name} holds sequences of {length} tokens, shorter than the {sequence_length} "
            "asked for"
        )
    provenance = Provenance(
        name,
        "tensor" if isinstance(source, Tensor) else "safetensors",
        origin | {"sequences": str(held), "sequence_length": str(length)},
        "given",
    )
    return make_batch(tokens, provenance, vocabulary=vocabulary, notices=tuple(notices))


def tokens_in_memory(given: object) -> Tensor | None:
    """The tokens of a tensor, or of a batch as tokenizers make it; None of anything else.

    Args:
        given: a tensor, or a mapping with `input_ids` and maybe an `attention_mask`.

    Raises:
        DataError: the batch has no `input_ids`, or padding; or a tensor has no numbers at places.
    """
    if isinstance(given, Tensor):
        return _there(given)
    if not isinstance(given, Mapping):
        return None
    where = "the given batch"
    if TENSOR not in given:
        raise _without_tokens(list(map(str, given)), where)
    try:
        tensors = {
            name: _there(torch.as_tensor(given[name]))
            for name in (TENSOR, PADDING_MASK)
            if name in given
        }
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{TENSOR} is no tensor ({error})", where=where, wanted="[sequences, length]"
        ) from error
    if PADDING_MASK in tensors:
        tokens = tensors[TENSOR]
        _check_mask(
            tensors[PADDING_MASK], tuple(tensors[PADDING_MASK].shape), tuple(tokens.shape), where
        )
    return tensors[TENSOR]


def _there(tensor: Tensor) -> Tensor:
    """The tensor, which holds all of its numbers.

    Raises:
        DataError: it is on the meta device, nested or sparse.
    """
    if tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided:
        raise DataError(
            "a tensor that is on the meta device, nested or sparse", where="the given calibration",
            wanted="a dense tensor with its numbers",
        )  # fmt: skip
    return tensor


def _read(source: str, sequences: int | None, length: int) -> _Given:
    """What `_first` gives of a file's tokens; the rest of the file stays on disk."""
    path = locate_text(source)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if TENSOR not in names:
                raise _without_tokens(names, source)
            rows = file.get_slice(TENSOR)
            given = _first(rows, tuple(rows.get_shape()), source, sequences, length)
            if PADDING_MASK in names:
                mask = file.get_slice(PADDING_MASK)
                count, clipped = given.tokens.shape
                part = mask[:count, :clipped] if len(mask.get_shape()) == 2 else given.tokens
                _check_mask(part, tuple(mask.get_shape()), tuple(rows.get_shape()), source)
            others = sorted(set(names) - {TENSOR, PADDING_MASK})
            return replace(given, others=tuple(others))
    except PermissionError as error:
        raise unreadable(source, error, DataError) from error
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"damaged safetensors ({error})", where=source, wanted="a whole safetensors file"
        ) from error


def _without_tokens(names: Sequence[str], where: str) -> DataError:
    return DataError(
        f"no tensor {TENSOR!r} (found: {some(names) or 'none'})",
        where=where,
        wanted=f"tokens under the name {TENSOR!r}",
    )


def _check_mask(
    mask: Tensor, shape: tuple[int, ...], of_tokens: tuple[int, ...], where: str
) -> None:
    """Prove that no token is padding.

    Args:
        mask: the part of it that belongs to the tokens that are used, [sequences, length].
        shape: of the whole mask.
        of_tokens: of all tokens.
        where: the file.

    Raises:
        DataError: one is, or the mask does not fit the tokens.
    """
    if shape != of_tokens:
        raise DataError(
            f"{PADDING_MASK} has the shape {list(shape)}",
            where=where,
            wanted=f"{list(of_tokens)}, that of {TENSOR}",
        )
    padding = (mask != 1).sum(dim=1)  # [sequences]
    if len(rows := padding.nonzero()):
        row = int(rows[0])
        raise DataError(
            f"{PADDING_MASK} leaves out {int(padding[row])} of {mask.shape[1]} tokens of sequence "
            f"{row} ({len(rows)} of {len(mask)} sequences have padding)",
            where=where,
            wanted="sequences without padding, as every token would count",
            hint="packing the texts one behind another, or cutting all to one length",
        )


def _first(
    rows: Any, shape: tuple[int, ...], where: str, sequences: int | None, length: int
) -> _Given:
    """The sequences asked for, of a tensor or a slice of a file.

    Raises:
        DataError: `shape` is not [sequences, length], or a sequence has nothing to predict.
    """
    if len(shape) != 2 or 0 in shape or shape[1] < 2:
        raise DataError(
            f"{TENSOR} has the shape {list(shape)}",
            where=where,
            wanted="[sequences, length], not empty, at least 2 tokens long",
        )
    count = shape[0] if sequences is None else min(sequences, shape[0])
    tokens: Tensor = rows[:count, : min(length, shape[1])]  # [sequences, length]
    return _Given(tokens, shape[0], shape[1])
