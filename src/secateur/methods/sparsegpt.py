"""SparseGPT: prune by the optimal brain surgeon, and let the weights to the right make up for it.

    H      = mean over sequences of 2 X_n' X_n, a share of its mean diagonal added    [in, in]
    R      = upper triangular, R R' = H                                                [in, in]
    U      = inv(R), the upper Cholesky factor of inv(H),  U' U = inv(H)               [in, in]
    score  = W**2 / diag(U)**2
    for every column j, left to right, of the weights that are pruned there:
        error[:, j]  = W[:, j] / U[j, j]
        W[:, j + 1:] -= outer(error[:, j], U[j, j + 1:])

    W [out, in]  weight;  X_n [tokens, in]  inputs of the layer in sequence n

Unstructured masks are chosen per block of `block_size` columns, once the columns to the left have
had their say: across the matrix as in the paper (`competition=layer`), or with the same count in
every row (`competition=row`). The counts are exact over the whole matrix either way, where the
paper's threshold prunes one weight too many per block. N:M masks are chosen group by group.

U is never formed but for its part on a block of columns b. With D what has become of the weights,
D = -errors U, so that D R = -errors, which is 0 in b as long as nothing is pruned there: what the
columns c on the left do to b is  D[:, b] = -D[:, c] R[c, b] inv(R[b, b]).

The columns of a block are solved by halves: the left half, its effect on the right half as one
matrix product, the right half. That is the same arithmetic as column after column, at the speed of
matrix products; for fewer steps the rows of the block's U are divided by its diagonal beforehand,
so that W[:, j] itself, where it goes, stands for error[:, j]. Matrices that read the same input
share H and R and are solved together, their rows stacked.

Source: Frantar and Alistarh, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from secateur.errors import NumericalError
from secateur.methods.base import Solution, solve
from secateur.methods.parameters import WeightParams
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

DAMPING = 0.01
"""Share of the mean diagonal of a Hessian that is added to it."""
_HOPELESS = 1e6
_LEAF = 16
"""Columns that are solved one by one; wider stretches are halved."""


class SparseGPTParams(WeightParams):
    """Parameters of SparseGPT."""

    competition: Competition = Competition.LAYER
    """Weights compete across the matrix within a block of columns, or within their row."""
    damping: float = Field(default=DAMPING, gt=0, allow_inf_nan=False)
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
    factor, damping = upper_factor(hessian, dead, params.damping)
    sizes = [len(weight) for weight in weights]
    # Turned over, so that a column is one stretch of memory: the same arithmetic, faster.
    dense = torch.cat([weight.float() for weight in weights]).T.contiguous()  # [in, all rows]
    pruned = torch.zeros_like(dense, dtype=torch.bool)
    change = torch.zeros_like(dense)
    scale = factor.diagonal().square().reciprocal().masked_fill(dead, torch.inf)  # dead ones first
    columns = len(dense)
    width = _aligned(params.block_size, pattern)
    one = torch.eye(min(width, columns), device=dense.device)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        part = slice(start, stop)
        inverse = torch.linalg.solve_triangular(
            factor[part, part], one[: stop - start, : stop - start], upper=True
        )
        current = dense[part] - inverse.T @ (factor[:start, part].T @ change[:start])
        if isinstance(pattern, Unstructured):
            score = current.square() / scale[part, None]
            pruned[part] = _pruned_in_block(score, start, sizes, pattern, params)
        goes, lost = pruned[part].to(current.dtype), torch.empty_like(current)
        unit = inverse / inverse.diagonal()[:, None]
        _solve(_Rows(current, goes, lost, unit, scale[part], pattern))
        pruned[part] = goes.bool()
        torch.sub(current.sub_(lost), dense[part], out=change[part])
    keep = ~pruned.T.contiguous()
    solved = without_dropped(dense.add_(change).T.contiguous(), keep)
    grown = f"the Hessian was singular: its damping grew from {params.damping:g} to {damping:g}"
    return Solution(
        torch.split(solved, sizes),
        torch.split(keep, sizes),
        (grown,) if damping > params.damping else (),
    )


def upper_factor(hessian: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """R, upper triangular, of the damped Hessian R R', and the damping that it took.

    Args:
        hessian: float32 [in, in], not negative definite; is not changed.
        dead: bool [in], inputs whose row and column are zero.
        damping: share of the mean diagonal; grows tenfold until the factor exists.

    Returns:
        R [in, in], and the share used in the end.

    Raises:
        NumericalError: no damping helps.
    """
    diagonal = hessian.diagonal()  # [in]
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
    while damping < _HOPELESS:
        # A dead input has no partner, whatever stands on its diagonal; an average one is stable.
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean + mean * dead)
        # A Cholesky factor is lower triangular: of the Hessian read from its last corner.
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not bool(failed) and all_finite(factor):
            return factor.flip(0, 1), damping
        damping *= 10
    raise NumericalError(
        "the Hessian has no inverse, however damped", hint="more calibration text, or method wanda"
    )


@dataclass(frozen=True)
class _Rows:
    """A stretch of columns of stacked rows, turned over, that are pruned one after the other.

    Attributes:
        current: float32 [columns, rows], the weights as far as they are corrected; written to.
        pruned: float32 [columns, rows], 1 where a weight goes, so that it can be multiplied with;
            written to for N:M, else decided before.
        lost: float32 [columns, rows], what goes of them, 0 elsewhere; written to.
        factor: the part of U [columns, columns], its rows divided by its diagonal.
        scale: [columns], what divides a squared weight to give its score.
        pattern: which of them stay.
    """

    current: Tensor
    pruned: Tensor
    lost: Tensor
    factor: Tensor
    scale: Tensor
    pattern: Pattern

    def part(self, start: int, stop: int) -> _Rows:
        """Some of the columns."""
        some = slice(start, stop)
        return replace(
            self, current=self.current[some], pruned=self.pruned[some], lost=self.lost[some],
            factor=self.factor[some, some], scale=self.scale[some],
        )  # fmt: skip


def _solve(rows: _Rows) -> None:
    """Prune a stretch of columns and correct those to their right within it."""
    columns, factor, pattern = rows.current, rows.factor, rows.pattern
    group = pattern.m if isinstance(pattern, NofM) else 1
    if len(columns) > max(_LEAF, group):
        middle = _aligned(len(columns) // 2, pattern)
        _solve(rows.part(0, middle))
        columns[middle:].addmm_(factor[:middle, middle:].T, rows.lost[:middle], alpha=-1)
        _solve(rows.part(middle, len(columns)))
        return
    for at, (column, dropped, lost, share) in enumerate(
        zip(columns, rows.pruned, rows.lost, factor, strict=True)
    ):
        if isinstance(pattern, NofM) and at % group == 0:
            score = columns[at : at + group].square() / rows.scale[at : at + group, None]
            torch.logical_not(keep_in_places(score, pattern.n), out=rows.pruned[at : at + group])
        torch.mul(column, dropped, out=lost)
        columns[at + 1 :].addr_(share[at + 1 :], lost, alpha=-1)


def _pruned_in_block(
    score: Tensor,
    start: int,
    sizes: list[int],
    pattern: Unstructured,
    params: SparseGPTParams,
) -> Tensor:
    """What goes of one block of columns: as many as bring the count so far to the ratio.

    The count so far is known without looking, which would wait for an accelerator.

    Args:
        score: [block, all rows].
        start: columns left of it, of which the ratio is pruned.
        sizes: rows of each matrix that is stacked.
    """
    chosen = []
    for part in torch.split(score.T, sizes):
        alone = params.competition is Competition.ROW
        rivals, rows = (part, 1) if alone else (part.reshape(1, -1), len(part))
        count = pattern.pruned_of(rows * (start + part.shape[1])) - pattern.pruned_of(rows * start)
        chosen.append(~keep_highest(rivals, rivals.shape[1] - count).view_as(part))
    return torch.cat(chosen).T


def _aligned(width: int, pattern: Pattern) -> int:
    """`width` rounded down to whole groups, at least one."""
    group = pattern.m if isinstance(pattern, NofM) else 1
    return max(group, width // group * group)
