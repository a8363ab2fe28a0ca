"""How the matrices of a GGUF file are stored, and the bytes of a tensor in each type.

    F16, BF16   two bytes for every weight
    Q8_0        blocks of 32 weights of a row: 8 bits each, and a scale in float16
    Q4_0        the same with 4 bits; embeddings and the output head in Q8_0

Everything of one dimension is in float32. A weight that is zero stays zero in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from secateur.errors import NumericalError
from secateur.gguf.library import library

GROUP = 32
"""Weights of a row that share a scale in Q8_0 and Q4_0."""
_MOST = {"F16": 65504.0, "Q8_0": 65504.0 * 127, "Q4_0": 65504.0 * 8}
"""The largest weight that a type holds: scales are in float16."""
_TOO_SMALL = 2.0**-100
"""Weights below are zeros in every type with a scale, whose smallest is 2**-24; the quantisers'
reciprocals would overflow on them."""


class GgufType(StrEnum):
    """How the matrices of a GGUF file are stored."""

    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"


FILE_TYPES = {GgufType.F16: 1, GgufType.BF16: 32, GgufType.Q8_0: 7, GgufType.Q4_0: 2}
"""llama.cpp's numbers for a file most of whose matrices have a type."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        parameter: of the model, in transformers' spelling; "" for one that is computed.
        shape: [out, in] or [out].
        type: in which it is stored, by the library's name.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    type: str

    @property
    def rounded(self) -> bool:
        """Whether its type has a scale for a block of weights."""
        return self.type.startswith("Q")

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        gguf = library()
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.type]]
        return prod(self.shape) // int(weights) * int(size)


def type_of(name: str, shape: tuple[int, ...], chosen: GgufType) -> str:
    """The type of one tensor: vectors are never rounded, nor is what `GROUP` does not divide.

    Args:
        name: in the file.
        shape: [out, in] or [out].
        chosen: for the matrices.
    """
    if len(shape) == 1:
        return "F32"
    if chosen in (GgufType.F16, GgufType.BF16):
        return chosen.value
    if shape[-1] % GROUP:
        return "F16"
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else chosen.value


def encode(weight: Tensor, stored: StoredTensor) -> Any:
    """The bytes of a tensor, as a numpy array.

    Args:
        weight: as it lies in the file, in any dtype.
        stored: what it is to be.

    Raises:
        NumericalError: a weight is not finite, or too large for the type.
    """
    values = weight.float()
    largest = float(values.abs().max())
    most = _MOST.get(stored.type, float("inf"))
    if not largest <= most or largest == float("inf"):
        raise NumericalError(
            f"a weight of {stored.parameter} is {largest:g}",
            wanted=f"at most {most:g}, as {stored.type} holds",
            hint="--type BF16" if largest < float("inf") else "another copy of the model",
        )
    if stored.rounded:
        values = values.masked_fill(values.abs() < _TOO_SMALL, 0)
    gguf = library()
    array = np.ascontiguousarray(values.numpy())
    return np.ascontiguousarray(gguf.quants.quantize(array, gguf.GGMLQuantizationType[stored.type]))
