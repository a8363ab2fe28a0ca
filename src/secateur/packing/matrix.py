"""Packs a sparse matrix as the values it keeps and one bit per weight, exactly.

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
from secateur.packing import fours
from secateur.sparsity.pattern import NofM

GROUPS = (4, 8, 16)
"""Sizes of group that `find_form` tries; what is 1:2 is 2:4 too, and takes no more."""
MOST_ZEROS_KEPT = 1.05
"""N:M is preferred to a bitmask while it keeps at most so many values for one that is no zero."""

PACKABLE = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that can be packed."""
_WORD = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtype that weights of so many bytes are moved as: their bits, whatever they mean."""
_GATHER = 0x0102040810204080
"""Eight bytes of 0 or 1, times this, have their bits side by side in the highest byte."""


@dataclass(frozen=True)
class Bitmask:
    """The form that keeps every weight that is not zero, however many a row has."""

    def __str__(self) -> str:
        return "bitmask"


PackedForm = NofM | Bitmask


def find_form(weight: Tensor) -> PackedForm | None:
    """The form that W [out, in] is best packed in; None where none is smaller than the matrix.

    N:M is chosen only where every group has at most N weights that are no zero, and where it costs
    hardly more than a bitmask: rows of one length are what a kernel wants.
    """
    if weight.dtype not in PACKABLE or not weight.numel():
        return None
    rows, columns = weight.shape
    mask = _to_bits(_alive(weight))
    nonzero = _bits_set(mask)
    if packed_bytes(weight, nonzero) >= weight.nbytes:
        return None
    patterns: list[NofM] = []
    for m in GROUPS:
        if columns % m == 0:
            n = max(1, int(_counts(mask, columns, m).max()))
            values = rows * columns * n // m
            if n < m and values <= max(nonzero, 1) * MOST_ZEROS_KEPT:
                patterns.append(NofM(n, m))
    best = min(patterns, key=lambda pattern: (pattern.n / pattern.m, pattern.m), default=None)
    if best is not None and packed_bytes(weight, rows * columns * best.n // best.m) < weight.nbytes:
        return best
    return Bitmask()


def packed_bytes(weight: Tensor, count: int) -> int:
    """Bytes of values and mask of W [out, in] that keeps `count` weights."""
    rows, columns = weight.shape
    return count * weight.element_size() + rows * -(-columns // 8)


def pack_matrix(weight: Tensor, form: PackedForm) -> tuple[Tensor, Tensor]:
    """The values and the mask of W [out, in].

    Raises:
        PatternError: W is not of that form.
    """
    rows, columns = weight.shape
    weight = weight.contiguous()
    alive = _alive(weight)  # bool [out, in]
    mask = _to_bits(alive)
    if isinstance(form, NofM):
        form.check_fits(columns, "a matrix to pack")
        counts = _counts(mask, columns, form.m)
        if crowded := int((counts > form.n).sum()):
            raise PatternError(
                f"{crowded} groups have more than {form.n} weights of {form.m}",
                where="a matrix to pack",
                wanted=f"a matrix that is {form}",
            )
        if bool((counts < form.n).any()):
            alive = _filled(alive, form)
            mask = _to_bits(alive)
    words = weight.view(_WORD[weight.itemsize]).flatten()
    if n := _in_fours(weight, form):
        kept = fours.squeeze(words, fours.codes_of(mask, columns // 4), n)
    else:
        kept = words[alive.flatten().nonzero().flatten()]
    shape = (rows, -1) if isinstance(form, NofM) else (-1,)
    return kept.view(weight.dtype).view(shape), mask


def unpack_matrix(values: Tensor, mask: Tensor, columns: int, form: PackedForm) -> Tensor:
    """W [out, in] from its values and mask, bit for bit; `columns` is in.

    Raises:
        PatternError: they cannot be those of such a matrix.
    """
    _check(values, mask, columns, form)
    words = values.contiguous().view(_WORD[values.itemsize])
    if n := _in_fours(values, form):
        dense = fours.spread(words.flatten(), fours.codes_of(mask, columns // 4), n)
    else:
        alive = _from_bits(mask, columns)
        dense = words.new_zeros(alive.shape).masked_scatter_(alive, words)
    return dense.view(values.dtype).view(len(mask), columns)


def _in_fours(weight: Tensor, form: PackedForm) -> int:
    """N, if groups are words of 64 bits of which a word is kept; else 0."""
    fits = isinstance(form, NofM) and form.m == 4 and form.n in fours.KEPT and weight.itemsize == 2
    return form.n if isinstance(form, NofM) and fits else 0


def _alive(weight: Tensor) -> Tensor:
    """Tell the weights whose bits are not all 0: bool [out, in]."""
    return weight.contiguous().view(_WORD[weight.itemsize]) != 0


def _filled(alive: Tensor, form: NofM) -> Tensor:
    """Keep the first zeros too where a group has fewer than N other weights: bool [out, in]."""
    groups = alive.view(len(alive), -1, form.m).clone()
    short = _lanes(groups) < form.n  # [out, in / m]
    some = groups[short]  # [groups, m]
    spare = (~some).cumsum(-1)  # 1 at the first zero
    missing = form.n - _lanes(some).unsqueeze(-1).int()
    groups[short] = some | (~some & (spare <= missing))
    return groups.flatten(-2)


def _counts(mask: Tensor, columns: int, m: int) -> Tensor:
    """How many weights each group keeps, in no order: uint8 [groups]."""
    if m == 4:
        low, high = _of_halves(mask) & 0x0F, _of_halves(mask) >> 4
        return torch.cat((low.flatten(), high[:, : columns // 8].flatten()))
    if m % 8 == 0:
        halves = _of_halves(mask)
        of_bytes = (halves + (halves >> 4)) & 0x0F
        return reduce(torch.add, of_bytes.view(-1, m // 8).unbind(-1))
    return _lanes(_from_bits(mask, columns).view(len(mask), -1, m)).flatten()


def _of_halves(mask: Tensor) -> Tensor:
    """Count the bits that are set in each half of a byte: uint8."""
    pairs = mask - (mask >> 1 & 0x55)
    return (pairs & 0x33) + (pairs >> 2 & 0x33)


def _lanes(groups: Tensor) -> Tensor:
    """The sum over a short last dimension: bool [..., m] -> uint8 [...]."""
    return reduce(torch.add, groups.view(torch.uint8).unbind(-1))


def _to_bits(alive: Tensor) -> Tensor:
    """bool [out, in] -> uint8 [out, ceil(in / 8)]."""
    columns = alive.shape[1]
    if columns % 8:
        alive = torch.nn.functional.pad(alive, (0, -columns % 8))
    words = alive.contiguous().view(torch.int64)
    return ((words * _GATHER) >> 56).to(torch.uint8)


def _from_bits(mask: Tensor, columns: int) -> Tensor:
    """uint8 [out, ceil(in / 8)] -> bool [out, in]."""
    bits = _spread(mask.device).index_select(0, mask.flatten().int())
    return bits.view(torch.bool).view(len(mask), -1)[:, :columns].contiguous()


@cache
def _spread(device: torch.device) -> Tensor:
    """Every byte as eight bytes of 0 or 1, the lowest bit first: int64 [256]."""
    bits = torch.arange(256, device=device).unsqueeze(-1) >> torch.arange(8, device=device)
    return (bits & 1).to(torch.uint8).view(torch.int64).flatten()


def _check(values: Tensor, mask: Tensor, columns: int, form: PackedForm) -> None:
    """Raise `PatternError` unless these are the values and the mask of one matrix."""
    if mask.dtype != torch.uint8 or mask.dim() != 2 or mask.shape[1] != -(-columns // 8):
        raise PatternError(
            f"a mask of {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}",
            wanted=f"uint8 [rows, {-(-columns // 8)}] for {columns} columns",
        )
    if columns % 8 and bool((mask[:, -1] >> columns % 8).any()):
        raise PatternError("bits past the end of a row", wanted="zeros there")
    if isinstance(form, NofM):
        expected = (len(mask), columns * form.n // form.m)
        if columns % form.m or tuple(values.shape) != expected:
            raise PatternError(
                f"values of shape {list(values.shape)}",
                wanted=f"{list(expected)} for {form} of {len(mask)} x {columns}",
            )
        if wrong := int((_counts(mask, columns, form.m) != form.n).sum()):
            raise PatternError(
                f"{wrong} groups of {form.m} do not keep {form.n}", wanted=f"{form.n} in each"
            )
    else:
        count = _bits_set(mask)
        if tuple(values.shape) != (count,):
            raise PatternError(
                f"values of shape {list(values.shape)}", wanted=f"[{count}], as the mask says"
            )


def _bits_set(mask: Tensor) -> int:
    """How many bits of a mask are 1."""
    return int(_counts(mask, mask.shape[1] * 8, 8).sum())
