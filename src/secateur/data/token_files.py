"""Tokens that somebody else made, used verbatim: a safetensors file or a tensor.

The file holds `input_ids` [sequences, length] of any integer type. It is how two programs are made
to see the same calibration tokens, and how one can prune without a tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.data.texts import locate_text
from secateur.data.tokens import Provenance, TokenBatch, make_batch
from secateur.errors import DataError

TENSOR = "input_ids"
"""Name of the tokens in a file."""


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
        tokens, held, length = _first(source, tuple(source.shape), name, sequences, sequence_length)
    else:
        name, origin = source, {"path": source}
        tokens, held, length = _read(source, sequences, sequence_length)
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise DataError(f"{TENSOR} is {tokens.dtype}", where=name, wanted="an integer type")
    notices = []
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


def _read(source: str, sequences: int | None, length: int) -> tuple[Tensor, int, int]:
    """What `_first` gives of a file's tokens; the rest of the file stays on disk."""
    path = locate_text(source)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if TENSOR not in names:
                present = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise DataError(
                    f"no tensor {TENSOR!r} (found: {present or 'none'})",
                    where=source,
                    wanted=f"tokens under the name {TENSOR!r}",
                )
            rows = file.get_slice(TENSOR)
            return _first(rows, tuple(rows.get_shape()), source, sequences, length)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"damaged safetensors ({error})", where=source, wanted="a whole safetensors file"
        ) from error


def _first(
    rows: Any, shape: tuple[int, ...], where: str, sequences: int | None, length: int
) -> tuple[Tensor, int, int]:
    """The sequences asked for, of a tensor or a slice of a file, and what was there: count, length.

    Raises:
        DataError: `shape` is not [sequences, length], or is empty.
    """
    if len(shape) != 2 or 0 in shape:
        raise DataError(
            f"{TENSOR} has the shape {list(shape)}",
            where=where,
            wanted="[sequences, length], not empty",
        )
    count = shape[0] if sequences is None else min(sequences, shape[0])
    tokens: Tensor = rows[:count, : min(length, shape[1])]  # [sequences, length]
    return tokens, shape[0], shape[1]
