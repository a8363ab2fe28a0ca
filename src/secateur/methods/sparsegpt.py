"""SparseGPT: prune by the optimal brain surgeon, and let the weights to the right make up for it.

    H      = mean over sequences of 2 X_n' X_n, a share of its mean diagonal added    [in, in]
    U      = upper Cholesky factor of inv(H),  U' U = inv(H)                           [in, in]
    score  = W**2 / diag(U)**2
    for every column j, left to right, of the weights that are pruned there:
        error[:, j]  = W[:, j] / U[j, j]
        W[:, j + 1:] -= outer(error[:, j], U[j, j + 1:])

    W [out, in]  weight;  X_n [tokens, in]  inputs of the layer in sequence n

Unstructured masks are chosen per block of `block_size` columns, once the columns to the left have
had their say: across the matrix as in the paper (`competition=layer`), or with the same count in
every row (`competition=row`). The counts are exact over the whole matrix either way, where the
paper's threshold prunes one weight too many per block. N:M masks are chosen group by group.

The columns of a block are solved by halves: the left half, its effect on the right half as one
matrix product, the right half. That is the same arithmetic as column after column, at the speed of
matrix products. Matrices that read the same input share H and U and are solved together, their
rows stacked.

Source: Frantar and Alistarh, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from secateur.errors import NumericalError
from secateur.methods.base import Params, Solution, solve
from secateur.sparsity import (
    Competition,
    NofM,
    Pattern,
    Unstructured,
    keep_highest,
    keep_in_places,
    without_dropped,
)
from secateur.statistics import Need, Statistics, all_finite

_HOPELESS = 1e6
_LEAF = 16
"""Columns that are solved one by one; wider stretches are halved."""


class SparseGPTParams(Params):
    """Parameters of SparseGPT."""

    competition: Competition = Competition.LAYER
    """Weights compete across the matrix within a block of columns, or within their row."""
    damping: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Share of the Hessian's mean diagonal that is added to its diagonal."""
    block_size: int = Field(default=128, ge=1)
    """Columns whose unstructured mask is chosen at once."""


@solve(
    "sparsegpt",
    paper="https://arxiv.org/abs/2301.00774",
    needs={Need.HESSIAN},
    params=SparseGPTParams,
)
def sparsegpt(
    weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern, params: SparseGPTParams
) -> Solution:
    """Optimal brain surgeon: prune, and correct the weights that stay."""
    hessian = statistics.hessian
    dead = hessian.diagonal() == 0  # inputs that were never anything but zero
    factor, damping = inverse_factor(hessian, dead, params.damping)
    current = torch.cat([weight.float() for weight in weights])  # [all rows, in]
    keep = torch.ones_like(current, dtype=torch.bool)
    errors = torch.zeros_like(current)
    sizes = [len(weight) for weight in weights]
    scale = factor.diagonal().square().masked_fill(dead, torch.inf)  # dead inputs go first
    rows = _Rows(current, keep, errors, factor, scale, pattern)
    columns = current.shape[1]
    width = _aligned(params.block_size, pattern)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        if isinstance(pattern, Unstructured):
            score = current[:, start:stop].square() / scale[start:stop]
            keep[:, start:stop] = _keep_in_block(score, keep, start, sizes, pattern, params)
        _solve(rows, start, stop)
        current[:, stop:] -= errors[:, start:stop] @ factor[start:stop, stop:]
    grown = f"the Hessian was singular: its damping grew from {params.damping:g} to {damping:g}"
    return Solution(
        torch.split(without_dropped(current, keep), sizes),
        torch.split(keep, sizes),
        (grown,) if damping > params.damping else (),
    )


def inverse_factor(hessian: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped Hessian, and the damping that it took.

    Args:
        hessian: float32 [in, in], not negative definite; is not changed.
        dead: bool [in], inputs whose row and column are zero.
        damping: share of the mean diagonal; grows tenfold until the factor exists.

    Returns:
        U [in, in] with U' U = inv(H), and the share used in the end.

    Raises:
        NumericalError: no damping helps.
    """
    diagonal = hessian.diagonal()  # [in]
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
    while damping < _HOPELESS:
        # A dead input has no partner, whatever stands on its diagonal; an average one is stable.
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean + mean * dead)
        # of the Hessian, then its inverse, then of that; each lets the one before it go
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not bool(failed):
            factor = torch.cholesky_inverse(factor)
            factor, failed = torch.linalg.cholesky_ex(factor, upper=True)
            if not bool(failed) and all_finite(factor):
                return factor, damping
        damping *= 10
    raise NumericalError(
        "the Hessian has no inverse, however damped", hint="more calibration text, or method wanda"
    )


@dataclass(frozen=True)
class _Rows:
    """Stacked rows that are pruned column by column.

    Attributes:
        current: float32 [rows, in], the weights as far as they are corrected; written to.
        keep: bool [rows, in]; written to for N:M, else decided before.
        errors: float32 [rows, in], what each pruned weight leaves to be corrected; written to.
        factor: U [in, in] with U' U = inv(H).
        scale: [in], what divides a squared weight to give its score.
        pattern: which of them stay.
    """

    current: Tensor
    keep: Tensor
    errors: Tensor
    factor: Tensor
    scale: Tensor
    pattern: Pattern


def _solve(rows: _Rows, start: int, stop: int) -> None:
    """Prune columns start to stop and correct those to their right within the stretch."""
    current, errors, factor, pattern = rows.current, rows.errors, rows.factor, rows.pattern
    group = pattern.m if isinstance(pattern, NofM) else 1
    if stop - start > max(_LEAF, group):
        middle = start + _aligned((stop - start) // 2, pattern)
        _solve(rows, start, middle)
        current[:, middle:stop] -= errors[:, start:middle] @ factor[start:middle, middle:stop]
        _solve(rows, middle, stop)
        return
    # Turned over, so that a column is one stretch of memory: the same arithmetic, faster.
    columns = current[:, start:stop].T.contiguous()  # [columns, rows]
    pruned = ~rows.keep[:, start:stop].T.contiguous()
    lost = torch.empty_like(columns)
    shares, pivots = factor[start:stop, start:stop], factor.diagonal()[start:stop]
    for at, (column, dropped, error, share, pivot) in enumerate(
        zip(columns, pruned, lost, shares, pivots, strict=True)
    ):
        if isinstance(pattern, NofM) and at % group == 0:
            weights = columns[at : at + group]
            score = weights.square() / rows.scale[start + at : start + at + group, None]
            pruned[at : at + group] = ~keep_in_places(score, pattern.n)
        torch.mul(column, dropped, out=error).div_(pivot)
        columns[at + 1 :].addr_(share[at + 1 :], error, alpha=-1)
    current[:, start:stop] = columns.T
    rows.keep[:, start:stop] = ~pruned.T
    errors[:, start:stop] = lost.T


def _keep_in_block(
    score: Tensor,
    keep: Tensor,
    start: int,
    sizes: list[int],
    pattern: Unstructured,
    params: SparseGPTParams,
) -> Tensor:
    """The mask of one block of columns: as many pruned as bring the count so far to the ratio.

    Args:
        score: [all rows, block].
        keep: [all rows, in], decided left of `start`.
        sizes: rows of each matrix that is stacked.
    """
    chosen = []
    past = torch.split(keep[:, :start], sizes)
    for part, before in zip(torch.split(score, sizes), past, strict=True):
        rivals = part if params.competition is Competition.ROW else part.reshape(1, -1)
        weights = part.shape[0] * (start + part.shape[1])  # of the matrix, up to this block
        if params.competition is Competition.ROW:
            pruned = pattern.pruned_of(start + part.shape[1]) - pattern.pruned_of(start)
        else:
            pruned = pattern.pruned_of(weights) - int((~before).sum())
        chosen.append(keep_highest(rivals, rivals.shape[1] - pruned).view_as(part))
    return torch.cat(chosen)


def _aligned(width: int, pattern: Pattern) -> int:
    """`width` rounded down to whole groups, at least one."""
    group = pattern.m if isinstance(pattern, NofM) else 1
    return max(group, width // group * group)
