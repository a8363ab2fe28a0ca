"""Triton kernels that read a packed 2:4 matrix once and expand it in registers.

    y[b, row] = sum over groups g and positions p of w[row, g, p] * x[b, 4 g + p]

A group of four inputs is four mask bits and two values, the kept ones in order. Since exactly two
of the four bits are set, the weight at a position needs no counting:

    w[0] = first  where bit 0              w[3] = second where bit 3
    w[1] = second where bit 0, else first  (where bit 1)
    w[2] = first  where bit 3, else second (where bit 2)

Decoding is bound by the reading of weights. In 16 bits a group is 4 + 0.5 bytes instead of 8, so
that 1.78 times dense is the most that it can gain. Mask and values are read once whatever the
number of vectors; few vectors are multiplied by FMA in float32, more of them by tensor cores.

Imported only where a kernel is launched: `triton` comes with torch for a GPU and is optional. In
Triton's interpreter (TRITON_INTERPRET=1 before the first import) the same code runs on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur.inference.tile import Tile

_UNPACKED_ROWS, _UNPACKED_GROUPS = 8, 128


@triton.jit
def _read_groups(
    mask, values, row, group_start, rows, groups, mask_bytes,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Bits [ROWS, GROUPS] int32, first and second kept value [ROWS, GROUPS], zero outside."""
    inside = row[:, None] < rows
    line = row[:, None].to(tl.int64)
    byte = group_start // 2 + tl.arange(0, GROUPS // 2)[None, :]
    both = tl.load(mask + line * mask_bytes + byte, mask=inside & (byte < mask_bytes), other=0)
    both = both.to(tl.int32)
    bits = tl.join(both & 15, both >> 4).reshape(ROWS, GROUPS)
    place = 2 * group_start + tl.arange(0, 2 * GROUPS)[None, :]
    kept = tl.load(
        values + line * (2 * groups) + place, mask=inside & (place < 2 * groups), other=0.0
    )
    first, second = tl.split(kept.reshape(ROWS, GROUPS, 2))
    return bits, first, second


@triton.jit
def _expand(bits, first, second):
    """The weights at the four positions of every group, each of the shape of `bits`."""
    has0, has1, has2, has3 = (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0
    zero = tl.zeros_like(first)
    return (
        tl.where(has0, first, zero),
        tl.where(has1, tl.where(has0, second, first), zero),
        tl.where(has2, tl.where(has3, first, second), zero),
        tl.where(has3, second, zero),
    )


@triton.jit
def _multiply(
    x, mask, values, y, vectors, rows, groups, mask_bytes, groups_per_split,
    VECTORS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
    STAGES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One tile of rows over one share of the groups, for all vectors: y [splits, vectors, rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    vector = tl.arange(0, VECTORS)
    begin = split * groups_per_split
    end = tl.minimum(begin + groups_per_split, groups)
    if DOT:
        total = tl.zeros((ROWS, VECTORS), dtype=tl.float32)
    else:
        total = tl.zeros((VECTORS, ROWS, 4 * GROUPS), dtype=tl.float32)
    for start in tl.range(begin, end, GROUPS, num_stages=STAGES):
        bits, first, second = _read_groups(
            mask, values, row, start, rows, groups, mask_bytes, ROWS, GROUPS
        )
        column = 4 * start + tl.arange(0, 4 * GROUPS)
        if DOT:
            w0, w1, w2, w3 = _expand(bits, first, second)
            weight = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, 4 * GROUPS)
            there = (column[:, None] < 4 * groups) & (vector[None, :] < vectors)
            inputs = tl.load(
                x + vector[None, :] * (4 * groups) + column[:, None], mask=there, other=0.0
            )
            if EXACT:
                total = tl.dot(
                    weight.to(tl.float32), inputs.to(tl.float32), total, input_precision="ieee"
                )
            else:
                total = tl.dot(weight, inputs, total)
        else:
            w0, w1, w2, w3 = _expand(bits, first.to(tl.float32), second.to(tl.float32))
            there = (column[None, :] < 4 * groups) & (vector[:, None] < vectors)
            inputs = tl.load(
                x + vector[:, None] * (4 * groups) + column[None, :], mask=there, other=0.0
            ).to(tl.float32)
            weight = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(1, ROWS, 4 * GROUPS)
            total += weight * inputs[:, None, :]
    sums = tl.trans(total) if DOT else tl.sum(total, axis=2)  # [VECTORS, ROWS]
    place = (split * vectors + vector[:, None]) * rows + row[None, :]
    tl.store(y + place, sums, mask=(vector[:, None] < vectors) & (row[None, :] < rows))


@triton.jit
def _unpack(
    mask, values, weight, rows, groups, mask_bytes, ROWS: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """One tile of the dense weight [rows, 4 groups]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1) * GROUPS
    bits, first, second = _read_groups(
        mask, values, row, start, rows, groups, mask_bytes, ROWS, GROUPS
    )
    w0, w1, w2, w3 = _expand(bits, first, second)
    tile = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, 4 * GROUPS)
    column = 4 * start + tl.arange(0, 4 * GROUPS)[None, :]
    place = row[:, None].to(tl.int64) * (4 * groups) + column
    tl.store(weight + place, tile, mask=(row[:, None] < rows) & (column < 4 * groups))


def multiply(x: Tensor, mask: Tensor, values: Tensor, tile: Tile) -> Tensor:
    """x W^T of a packed matrix, [vectors, out], summed in float32.

    Args:
        x: [vectors, in], 1 to 64 vectors, of the dtype of `values`.
        mask: uint8 [out, ceil(in / 8)].
        values: [out, in / 2], float16, bfloat16 or float32.
        tile: how the work is cut.
    """
    vectors, (rows, kept) = x.shape[0], values.shape
    groups = kept // 2
    share = tile.share(groups)
    splits = triton.cdiv(groups, share)
    padded = triton.next_power_of_2(vectors)
    partial = x.new_empty(
        (splits, vectors, rows), dtype=x.dtype if splits == 1 else torch.float32
    )  # [splits, vectors, out]
    _multiply[(triton.cdiv(rows, tile.rows), splits)](
        x.contiguous(), mask, values, partial, vectors, rows, groups, mask.shape[1], share,
        VECTORS=max(padded, 16) if tile.dot else padded,
        ROWS=tile.rows, GROUPS=tile.groups, DOT=tile.dot, STAGES=tile.stages,
        EXACT=_multiplies_in_float32(values.dtype), num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    return partial[0] if splits == 1 else partial.sum(dim=0).to(x.dtype)


def unpack_two_of_four(mask: Tensor, values: Tensor) -> Tensor:
    """The dense weight [out, in] of a packed matrix, in the dtype of `values`."""
    rows, groups = values.shape[0], values.shape[1] // 2
    weight = values.new_empty((rows, 4 * groups))  # [out, in]
    grid = (triton.cdiv(rows, _UNPACKED_ROWS), triton.cdiv(groups, _UNPACKED_GROUPS))
    _unpack[grid](
        mask, values, weight, rows, groups, mask.shape[1],
        ROWS=_UNPACKED_ROWS, GROUPS=_UNPACKED_GROUPS,
    )  # fmt: skip
    return weight


def _multiplies_in_float32(dtype: torch.dtype) -> bool:
    """Whether the operands of a dot are float32: TF32 would round such weights.

    The interpreter keeps bfloat16 as uint16 and multiplies those integers; widened first, the
    products are the same, since float32 holds them exactly.
    """
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(triton.knobs.runtime.interpret)
    )
