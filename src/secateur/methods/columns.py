"""A stretch of columns pruned one after the other, those on the right corrected each time.

    for every column j, left to right, of the weights that are pruned there:
        lost[:, j]       = W[:, j]
        W[:, j + 1:]    -= outer(lost[:, j], U[j, j + 1:] / U[j, j])

Two ways do the same arithmetic and differ by rounding:

    by halves    the left half, its effect on the right half as one matrix product, the right half;
                 everywhere
    by a kernel  rows do not meet, so that each program of `columns_kernel.py` takes a few through
                 all columns; on CUDA with Triton, where halves launch a few kernels for each column

Source: Frantar and Alistarh, arXiv 2301.00774, algorithm 1, the inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.machine.kernels import kernel_runs
from secateur.sparsity import NofM, Pattern, keep_in_places

MOST_IN_KERNEL = 256
"""Columns that the kernel takes at most; a program holds them in registers."""
_LEAF = 16
"""Columns that are solved one by one; wider stretches are halved."""
_TRIED = 64
"""Rows with which the kernel is tried before it is relied on."""
_ALIKE = 0.9
"""Share of them that must come out alike: by rounding, another weight may go in a few."""
_FAULTS: dict[tuple[torch.device, int, Pattern], str | None] = {}
"""Device, columns, pattern -> why the kernel does not work there; None where it does."""


@dataclass(frozen=True)
class Columns:
    """Columns of stacked rows, turned over, so that a column is one stretch of memory.

    Attributes:
        current: float32 [columns, rows], the weights as far as they are corrected; written to.
        pruned: float32 [columns, rows], 1 where a weight goes, so that it can be multiplied with;
            written to for N:M, else decided before.
        lost: float32 [columns, rows], what goes of them, 0 elsewhere; written to.
        factor: float32 [columns, columns], that part of U, its rows divided by its diagonal.
        scale: float32 [columns], what divides a squared weight to give its score.
        pattern: which of them stay.
    """

    current: Tensor
    pruned: Tensor
    lost: Tensor
    factor: Tensor
    scale: Tensor
    pattern: Pattern

    @property
    def group(self) -> int:
        """Columns whose mask is chosen together when their turn comes."""
        return self.pattern.m if isinstance(self.pattern, NofM) else 1

    def copy(self, rows: int) -> Columns:
        """Some of the rows, in memory of their own."""
        first = slice(rows)
        return replace(
            self, current=self.current[:, first].clone(), pruned=self.pruned[:, first].clone(),
            lost=self.lost[:, first].clone(),
        )  # fmt: skip

    def part(self, start: int, stop: int) -> Columns:
        """Some of the columns."""
        some = slice(start, stop)
        return replace(
            self, current=self.current[some], pruned=self.pruned[some], lost=self.lost[some],
            factor=self.factor[some, some], scale=self.scale[some],
        )  # fmt: skip


def solve_columns(columns: Columns) -> str | None:
    """Prune all columns, and correct those to the right of each.

    Returns:
        what the user should know: that the kernel does not work where it should, once for each
        device, width and pattern.
    """
    current = columns.current
    if len(current) > MOST_IN_KERNEL or not kernel_runs(current.device, current.dtype):
        by_halves(columns)
        return None
    kind = (current.device, len(current), columns.pattern)
    first = kind not in _FAULTS
    if first:
        _FAULTS[kind] = _fault_of_kernel(columns)
    fault = _FAULTS[kind]
    if fault is None:
        by_kernel(columns)
        return None
    by_halves(columns)
    return f"solved without a kernel, which takes longer: {fault}" if first else None


def by_kernel(columns: Columns) -> None:
    """The same by the kernel, which is imported here: Triton is optional."""
    from secateur.methods import columns_kernel

    columns_kernel.launch(columns)


def by_halves(columns: Columns) -> None:
    """The same by halves."""
    current, factor, group = columns.current, columns.factor, columns.group
    if len(current) > max(_LEAF, group):
        middle = whole_groups(len(current) // 2, columns.pattern)
        by_halves(columns.part(0, middle))
        current[middle:].addmm_(factor[:middle, middle:].T, columns.lost[:middle], alpha=-1)
        by_halves(columns.part(middle, len(current)))
        return
    for at, (column, dropped, lost, share) in enumerate(
        zip(current, columns.pruned, columns.lost, factor, strict=True)
    ):
        if isinstance(columns.pattern, NofM) and at % group == 0:
            some = slice(at, at + group)
            score = current[some].square() / columns.scale[some, None]
            torch.logical_not(keep_in_places(score, columns.pattern.n), out=columns.pruned[some])
        torch.mul(column, dropped, out=lost)
        current[at + 1 :].addr_(share[at + 1 :], lost, alpha=-1)


def _fault_of_kernel(columns: Columns) -> str | None:
    """Why the kernel is not to be relied on for columns like these, by a trial; None if it is."""
    plain, tried = columns.copy(_TRIED), columns.copy(_TRIED)
    by_halves(plain)
    try:
        by_kernel(tried)
        least = 1e-4 * plain.current.abs().max()
        close = torch.isclose(tried.current, plain.current, 1e-3, float(least), equal_nan=True)
        alike = (close & (tried.pruned == plain.pruned)).all(dim=0).float().mean()
        return None if float(alike) >= _ALIKE else "its results differ from plain PyTorch's"
    except Exception as fault:  # no compiler, an old GPU, no room: Triton has many names for it
        return str(fault).strip().partition("\n")[0] or type(fault).__name__


def whole_groups(width: int, pattern: Pattern) -> int:
    """`width` rounded down to whole groups, at least one."""
    group = pattern.m if isinstance(pattern, NofM) else 1
    return max(group, width // group * group)
