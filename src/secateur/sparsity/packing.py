"""A sparse matrix as the values it keeps and one bit per weight: exact, without a model or a file.

W [out, in]    float32, bfloat16 or float16
mask           uint8 [out, ceil(in / 8)]: bit i % 8, the lowest first, of byte i // 8 of a row says
               whether weight i of that row is kept; bits past the end of a row are 0
values         of the dtype of W: N:M [out, in * N / M], every group's N kept weights in order;
               bitmask [kept], row after row

A weight is dropped only where all its bits are 0: -0.0 and every NaN come back as they were.
A group with fewer than N such weights keeps zeros too: an N:M matrix always has N values a group.
2:4 in bfloat16 takes 4 + 0.5 bytes for 8 of the dense matrix, 56.25 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor

from secateur.errors import PatternError
from secateur.sparsity.pattern import NofM

GROUPS = (4, 8, 16)
"""Sizes of group that `find_form` tries; what is 1:2 is 2:4 too, and takes no more."""
MOST_ZEROS_KEPT = 1.05
"""N:M is preferred to a bitmask while it keeps at most so many values for one that is no zero."""

PACKABLE = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that can be packed."""
_WORD = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What weights of so many bytes are moved as: their bits, whatever they mean."""
_GATHER = 0x0102040810204080
"""Eight bytes of 0 or 1, times this, have their bits side by side in the highest byte."""


@dataclass(frozen=True)
class Bitmask:
    """As many weights of each row are kept as there are."""

    def __str__(self) -> str:
        return "bitmask"


Form = NofM | Bitmask


def find_form(weight: Tensor) -> Form | None:
    """The form that W [out, in] is best packed in; None where none is smaller than the matrix.

    N:M is chosen only where every group has at most N weights that are no zero, and where it costs
    hardly more than a bitmask: rows of one length are what a kernel wants.
    """
    if weight.dtype not in PACKABLE or not weight.numel():
        return None
    rows, columns = weight.shape
    alive = _alive(weight)
    nonzero = int(alive.count_nonzero())
    if packed_bytes(weight, nonzero) >= weight.nbytes:
        return None
    found: list[NofM] = []
    for m in GROUPS:
        if columns % m == 0:
            n = max(1, int(_counts(alive, m).max()))
            kept = rows * columns * n // m
            if n < m and kept <= max(nonzero, 1) * MOST_ZEROS_KEPT:
                found.append(NofM(n, m))
    best = min(found, key=lambda pattern: (pattern.n / pattern.m, pattern.m), default=None)
    if best is not None and packed_bytes(weight, rows * columns * best.n // best.m) < weight.nbytes:
        return best
    return Bitmask()


def packed_bytes(weight: Tensor, kept: int) -> int:
    """Bytes of values and mask of W [out, in] with so many kept weights."""
    rows, columns = weight.shape
    return kept * weight.element_size() + rows * -(-columns // 8)


def pack_matrix(weight: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The values and the mask of W [out, in].

    Raises:
        PatternError: W is not of that form.
    """
    alive = _alive(weight)  # bool [out, in]
    if isinstance(form, NofM):
        form.check_fits(weight.shape[1], "a matrix to pack")
        alive = _exactly(alive, form)
    mask = _to_bits(alive)
    words = weight.contiguous().view(_WORD[weight.itemsize]).flatten()
    kept = words[alive.flatten().nonzero().flatten()].view(weight.dtype)
    if isinstance(form, NofM):
        kept = kept.view(weight.shape[0], -1)
    return kept, mask


def unpack_matrix(values: Tensor, mask: Tensor, columns: int, form: Form) -> Tensor:
    """W [out, in] from its values and mask, bit for bit; `columns` is in.

    Raises:
        PatternError: they cannot be those of such a matrix.
    """
    alive = _from_bits(mask, columns)
    _check(values, alive, form)
    word = _WORD[values.itemsize]
    dense = torch.zeros(alive.shape, dtype=word, device=values.device)
    return dense.masked_scatter_(alive, values.contiguous().view(word)).view(values.dtype)


def _alive(weight: Tensor) -> Tensor:
    """Where the bits of a weight are not all 0: bool [out, in]."""
    return weight.contiguous().view(_WORD[weight.itemsize]) != 0


def _counts(alive: Tensor, m: int) -> Tensor:
    """How many of each group are kept: uint8 [out, in / m]."""
    groups = alive.view(torch.uint8).view(len(alive), -1, m)
    return reduce(torch.add, groups.unbind(-1))  # a sum over so short a dimension is slow


def _exactly(alive: Tensor, form: NofM) -> Tensor:
    """With zeros that are kept where a group has fewer than N other weights."""
    counts = _counts(alive, form.m)
    if int(counts.max()) > form.n:
        raise PatternError(
            f"{int((counts > form.n).sum())} groups have more than {form.n} weights of {form.m}",
            where="a matrix to pack",
            wanted=f"a matrix that is {form}",
        )
    short = counts < form.n  # [out, in / m]
    if bool(short.any()):
        groups = alive.view(len(alive), -1, form.m).clone()
        some = groups[short]  # [groups, m]
        spare = (~some).cumsum(-1)  # 1 at the first zero
        missing = form.n - counts[short].unsqueeze(-1).int()
        groups[short] = some | (~some & (spare <= missing))
        alive = groups.flatten(-2)
    return alive


def _to_bits(alive: Tensor) -> Tensor:
    """uint8 [out, ceil(in / 8)]."""
    columns = alive.shape[1]
    if columns % 8:
        alive = torch.nn.functional.pad(alive, (0, -columns % 8))
    words = alive.contiguous().view(torch.int64)
    return ((words * _GATHER) >> 56).to(torch.uint8)


def _from_bits(mask: Tensor, columns: int) -> Tensor:
    """bool [out, in].

    Raises:
        PatternError: the mask has another shape, or bits past the end of a row.
    """
    if mask.dtype != torch.uint8 or mask.dim() != 2 or mask.shape[1] != -(-columns // 8):
        raise PatternError(
            f"a mask of {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}",
            wanted=f"uint8 [rows, {-(-columns // 8)}] for {columns} columns",
        )
    spread = _spread(mask.device).index_select(0, mask.flatten().int())
    alive = spread.view(torch.bool).view(mask.shape[0], -1)
    if columns % 8:
        if bool(alive[:, columns:].any()):
            raise PatternError("bits past the end of a row", wanted="zeros there")
        alive = alive[:, :columns].contiguous()
    return alive


@cache
def _spread(device: torch.device) -> Tensor:
    """Every byte as eight bytes of 0 or 1, the lowest bit first: int64 [256]."""
    bits = torch.arange(256, device=device).unsqueeze(-1) >> torch.arange(8, device=device)
    return (bits & 1).to(torch.uint8).view(torch.int64).flatten()


def _check(values: Tensor, alive: Tensor, form: Form) -> None:
    rows, columns = alive.shape
    if isinstance(form, NofM):
        wanted = (rows, columns * form.n // form.m)
        if columns % form.m or tuple(values.shape) != wanted:
            raise PatternError(
                f"values of shape {list(values.shape)}",
                wanted=f"{list(wanted)} for {form} of {rows} x {columns}",
            )
        wrong = int((_counts(alive, form.m) != form.n).sum()) if alive.numel() else 0
        if wrong:
            raise PatternError(
                f"{wrong} groups of {form.m} do not keep {form.n}", wanted=f"{form.n} in each"
            )
    else:
        kept = int(alive.count_nonzero())
        if tuple(values.shape) != (kept,):
            raise PatternError(
                f"values of shape {list(values.shape)}", wanted=f"[{kept}], as the mask says"
            )
