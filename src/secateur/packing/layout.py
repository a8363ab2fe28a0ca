"""How a packed matrix lies in a safetensors file (docs/packed.md has the whole format).

    NAME.values   what is kept, in the dtype of the matrix     (packing/matrix.py)
    NAME.mask     one bit per weight, uint8
    NAME.layout   int64 [4 + dimensions]: checksum, N, M, axis, then the shape of the tensor NAME

N and M are 0 for a bitmask. `axis` is -1 where the inputs run along the last dimension, -2 where
they run along the one before it (GPT-2): the tensor is packed as W [out, in], the dimensions in
front of these two counted with the rows. The checksum is XXH3 (64 bits) of the bytes of values,
mask and the rest of the layout, in that order: as fast as memory, so that reading can afford it.

Tensors that were not packed lie beside them as they were; what a folder of such files says of
itself is `checkpoint/packed_folder.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import xxhash
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.packing import PACKABLE
from secateur.packing.matrix import Bitmask, PackedForm, find_form, pack_matrix, unpack_matrix
from secateur.sparsity import NofM

VALUES, MASK, LAYOUT = PARTS = ".values", ".mask", ".layout"
OVERHEAD = 512
"""Bytes that a packed matrix is taken to need in the header beside its own: three entries of up to
some 170 bytes each."""
_WANTED = "a folder that `secateur pack` wrote"
_HINT = "packing or fetching it again"

Head = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor in a file, by name."""


@dataclass(frozen=True)
class PackedMatrix:
    """One packed matrix, known by its layout.

    Attributes:
        name: of the tensor that was packed.
        shape, dtype: of that tensor.
        form: of the values.
        axis: along which of its dimensions the inputs run, -1 or -2.
        checksum: of what is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    form: PackedForm
    axis: int
    checksum: int

    @property
    def rows(self) -> int:
        """Rows of the matrix that was packed."""
        return prod(self.shape) // self.columns

    @property
    def columns(self) -> int:
        """Columns of the matrix that was packed: its inputs."""
        return self.shape[self.axis]

    @property
    def parts(self) -> tuple[str, str]:
        """The names of its values and its mask."""
        return self.name + VALUES, self.name + MASK

    @property
    def layout(self) -> Tensor:
        """The tensor that is stored as NAME.layout: int64 [4 + dimensions]."""
        n, m = (self.form.n, self.form.m) if isinstance(self.form, NofM) else (0, 0)
        return torch.tensor([self.checksum, n, m, self.axis, *self.shape])

    def verify(self, values: Tensor, mask: Tensor, where: object) -> None:
        """Raise `CheckpointError` unless values and mask are those that were written."""
        if _checksum(values, mask, self.layout) != self.checksum:
            raise CheckpointError(
                f"the checksum of packed tensor {self.name!r} is wrong", where=where, hint=_HINT
            )

    def unpack(self, values: Tensor, mask: Tensor) -> Tensor:
        """The tensor, bit for bit.

        Raises:
            PatternError: values and mask do not belong together.
        """
        weight = unpack_matrix(values, mask, self.columns, self.form)  # [rows, columns]
        if self.axis == -1:
            return weight.view(self.shape)
        *front, columns, rows = self.shape
        return weight.view(*front, rows, columns).transpose(-1, -2).contiguous()


def pack_tensor(name: str, tensor: Tensor) -> tuple[PackedMatrix, dict[str, Tensor]] | None:
    """Pack a tensor of a checkpoint: its parts by name; None where it cannot be packed.

    Inputs are looked for along the last dimension, then along the one before it. It may come out
    larger than it was: see `saved`.
    """
    if tensor.dim() < 2 or tensor.dtype not in PACKABLE or not tensor.numel():
        return None
    axis, form = -1, find_form(as_matrix(tensor, -1))
    if isinstance(form, Bitmask):
        across = find_form(as_matrix(tensor, -2))
        if isinstance(across, NofM):
            axis, form = -2, across
    form = form or Bitmask()
    values, mask = pack_matrix(as_matrix(tensor, axis), form)
    unsigned = PackedMatrix(name, tuple(tensor.shape), tensor.dtype, form, axis, 0)
    packed = PackedMatrix(
        name, tuple(tensor.shape), tensor.dtype, form, axis,
        _checksum(values, mask, unsigned.layout),
    )  # fmt: skip
    return packed, {name + VALUES: values, name + MASK: mask, name + LAYOUT: packed.layout}


def saved(tensor: Tensor, parts: Mapping[str, Tensor]) -> int:
    """Bytes on disk that a tensor takes less as these parts; negative if it takes more."""
    return tensor.nbytes - OVERHEAD - sum(part.nbytes for part in parts.values())


def as_matrix(tensor: Tensor, axis: int) -> Tensor:
    """A tensor of a checkpoint as W [rows, columns] with its inputs along `axis`, -1 or -2."""
    seen = tensor if axis == -1 else tensor.transpose(-1, -2)
    return seen.reshape(-1, seen.shape[-1])


def packed_names(names: Iterable[str]) -> list[str]:
    """The tensors that are packed, among the names of all that are stored."""
    return sorted(name.removesuffix(LAYOUT) for name in names if name.endswith(LAYOUT))


def read_layout(name: str, layout: Tensor, head: Head, where: object) -> PackedMatrix:
    """A packed matrix by its stored layout, held against the header of the file it lies in.

    Raises:
        CheckpointError: a part is missing, or they do not fit together.
    """
    for part in (name + VALUES, name + MASK):
        if part not in head:
            raise CheckpointError(f"tensor {part!r} is missing", where=where, wanted=_WANTED)
    (stored, dtype), (masked, mask_dtype) = head[name + VALUES], head[name + MASK]
    packed = parse_layout(name, layout, dtype)
    if packed is not None and dtype in PACKABLE and mask_dtype == torch.uint8:
        rows, columns = packed.rows, packed.columns
        form = packed.form
        if isinstance(form, NofM):
            fits = columns % form.m == 0 and stored == (rows, columns * form.n // form.m)
        else:
            fits = len(stored) == 1 and stored[0] <= rows * columns
        if fits and masked == (rows, -(-columns // 8)):
            return packed
    raise CheckpointError(
        f"packed tensor {name!r} has an impossible layout ({layout.tolist()[1:12]}) for values of"
        f" {list(stored)} and a mask of {list(masked)}",
        where=where,
        wanted=_WANTED,
        hint=_HINT,
    )


def parse_layout(name: str, layout: Tensor, dtype: torch.dtype) -> PackedMatrix | None:
    """The packed matrix that a layout describes; None if it can describe none."""
    if layout.dtype != torch.int64 or layout.dim() != 1 or len(layout) < 6:
        return None
    checksum, n, m, axis, *shape = layout.tolist()
    if min(shape) < 1 or axis not in (-1, -2) or not (0 < n < m or n == m == 0):
        return None
    return PackedMatrix(
        name, tuple(shape), dtype, NofM(n, m) if m else Bitmask(), axis, checksum
    )  # fmt: skip


def _checksum(values: Tensor, mask: Tensor, layout: Tensor) -> int:
    digest = xxhash.xxh3_64()
    for part in (values, mask, layout[1:]):
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest(), "big", signed=True)
