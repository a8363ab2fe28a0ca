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

The columns of a block are solved by `columns.py`; for fewer steps the rows of the block's U are
divided by its diagonal beforehand, so that W[:, j] itself, where it goes, stands for error[:, j].
Matrices that read the same input share H and R and are solved together, their rows stacked.

Source: Frantar and Alistarh, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from secateur.errors import NumericalError
from secateur.methods.base import Solution, solve
from secateur.methods.columns import Columns, solve_columns, whole_groups
from secateur.methods.parameters import WeightParams
from secateur.sparsity import (
    Competition,
    Pattern,
    Unstructured,
    keep_highest,
)
from secateur.statistics import Need, Statistics, all_finite

DAMPING = 0.01
"""Share of the mean diagonal of a Hessian that is added to it."""
_HOPELESS = 1e6


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
    notices = []
    if damping > params.damping:
        notices.append(
            f"the Hessian was singular: its damping grew from {params.damping:g} to {damping:g}"
        )
    width = whole_groups(params.block_size, pattern)
    one = torch.eye(min(width, len(dense)), device=dense.device)
    for start in range(0, len(dense), width):
        stop = min(start + width, len(dense))
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
        told = solve_columns(Columns(current, goes, lost, unit, scale[part], pattern))
        notices += [told] if told else []
        pruned[part] = goes.bool()
        current.sub_(lost)  # 0 where a weight goes
        torch.sub(current, dense[part], out=change[part])
        dense[part] = current
    keep, solved = ~pruned.T.contiguous(), dense.T.contiguous()
    return Solution(torch.split(solved, sizes), torch.split(keep, sizes), tuple(notices))


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
