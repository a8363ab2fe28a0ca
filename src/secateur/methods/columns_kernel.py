"""A Triton kernel that prunes a stretch of columns, a few rows in each program.

Every program holds its rows of all columns in registers. A column is taken out by a sum over all of
them of which but one is masked; that is as much arithmetic as its correction of the others, and
little beside the launches of a column at a time. For N:M a weight stays if fewer than N of its
group beat it: those before it that are no less, those after it that are more, as in
`sparsity/mask.py`.

Imported only where the kernel is launched: `triton` comes with torch for a GPU and is optional.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from secateur.methods.columns import Columns
from secateur.sparsity import NofM

_HELD = 512
"""Weights that a program of one warp holds, 16 a thread: with 32, half as many programs fit."""


@triton.jit
def _prune_columns(
    current, pruned, lost, factor, scale, columns, rows, group, kept,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, CHOOSE: tl.constexpr,
):  # fmt: skip
    """Prune columns [columns, rows] for some of the rows; by groups of which `kept` stay."""
    place = tl.arange(0, WIDTH)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (place[:, None] < columns) & (row[None, :] < rows)
    at = place[:, None].to(tl.int64) * rows + row[None, :]
    weight = tl.load(current + at, mask=inside, other=0.0)
    divisor = tl.load(scale + place, mask=place < columns, other=1.0)
    if CHOOSE:
        goes = tl.zeros((WIDTH, ROWS), tl.float32)
    else:
        goes = tl.load(pruned + at, mask=inside, other=0.0)
    for column in range(columns):
        if CHOOSE and column % group == 0:
            score = weight * weight / divisor[:, None]
            stronger = tl.zeros((WIDTH, ROWS), tl.int32)
            for rival in range(column, column + group):
                of_rival = tl.sum(tl.where(place[:, None] == rival, score, 0.0), axis=0)
                beats = (of_rival[None, :] > score) | (
                    (of_rival[None, :] == score) & (rival < place[:, None])
                )
                stronger += beats.to(tl.int32)
            now = (place[:, None] >= column) & (place[:, None] < column + group)
            goes = tl.where(now, (stronger >= kept).to(tl.float32), goes)
        going = tl.sum(tl.where(place[:, None] == column, weight * goes, 0.0), axis=0)
        share = tl.load(
            factor + column * columns + place, mask=(place > column) & (place < columns), other=0.0
        )
        weight -= share[:, None] * going[None, :]
    tl.store(current + at, weight, mask=inside)
    tl.store(lost + at, weight * goes, mask=inside)
    if CHOOSE:
        tl.store(pruned + at, goes, mask=inside)


def launch(columns: Columns) -> None:
    """Prune all columns, and correct those to the right of each."""
    width, rows = columns.current.shape
    pattern = columns.pattern
    padded = triton.next_power_of_2(width)
    at_once = max(1, _HELD // padded)
    with torch.cuda.device_of(columns.current):  # Triton launches on the current one
        _prune_columns[(triton.cdiv(rows, at_once),)](
            columns.current, columns.pruned, columns.lost, columns.factor.contiguous(),
            columns.scale.contiguous(), width, rows, columns.group,
            pattern.n if isinstance(pattern, NofM) else 0,
            WIDTH=padded, ROWS=at_once, CHOOSE=isinstance(pattern, NofM), num_warps=1,
            enable_fp_fusion=True,
        )  # fmt: skip
