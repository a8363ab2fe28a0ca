"""GPTQ inside a mask: weights rounded column by column, those after it make up for the error.

    H      = mean over sequences of 2 X_n' X_n, a share of its mean diagonal added    [in, in]
    order  = the columns by descending diagonal of H: W, Q and H are taken in it below
    R      = upper triangular, R R' = H                                                [in, in]
    U      = inv(R), the upper Cholesky factor of inv(H),  U' U = inv(H)               [in, in]
    grids  = of every group, those with least  sum over its columns of R[j, j]**2 (Q - W)[:, j]**2,
             from W as it is given
    for every column j in that order:
        Q[:, j]      = the grid's value nearest to W[:, j]; 0 where the weight is pruned
        error[:, j]  = (W[:, j] - Q[:, j]) / U[j, j]
        W[:, j + 1:] -= outer(error[:, j], U[j, j + 1:])

    W [out, in]  pruned weight;  X_n [tokens, in]  inputs of the layer in sequence n

A pruned weight is one that is 0. Errors do move it, and it is set back to 0 at its turn, which is
an error like that of rounding and moves the weights after it: that is how SparseGPT prunes and
quantises at once (section 3.5 of its paper). To leave the pruned weights out of `outer` would be
simpler and worse, for what they were to make up for would be lost.

Inputs that are largest come first, while many columns are left to make up for their errors. Groups
are of columns that lie side by side in the matrix as it is stored, whatever the order, so that no
index of groups is written: llm-compressor calls that order static. Its grids have to be found
before. What an error in column j costs once all columns after it have made up for it is
error[:, j]**2 = ((W - Q)[:, j] R[j, j])**2, and the sum of these is what the whole matrix loses; so
that is what a grid is chosen by.

Matrices that read the same input share H and are solved together, their rows stacked. U is never
formed but for its part on a block of columns: see `methods/sparsegpt.py`.

Source: Frantar et al., arXiv 2210.17323, algorithm 1; Frantar and Alistarh, arXiv 2301.00774; the
order from GPTQ's code, --act-order with --static-groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.methods.sparsegpt import DAMPING, upper_factor
from secateur.quantization.grid import LevelGrid, RoundedMatrix
from secateur.quantization.scheme import Scheme

_BLOCK = 128
"""Columns that are solved before those after them are corrected."""


def gptq(
    weights: Sequence[Tensor], hessian: Tensor, scheme: Scheme, dtype: torch.dtype
) -> list[RoundedMatrix]:
    """Round matrices that read the same input.

    Args:
        weights: float32 [out, in] each, 0 where pruned; the groups fill their rows.
        hessian: float32 [in, in], of the error of their outputs.
        scheme: what they are rounded to.
        dtype: of the scales.

    Raises:
        NumericalError: the Hessian has no inverse, however damped.
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    place = order.argsort()  # of a column in that order
    dead = hessian.diagonal()[order] == 0
    factor, _ = upper_factor(hessian[order[:, None], order], dead, DAMPING)  # R
    # Turned over, so that a column is one stretch of memory.
    dense = torch.cat(list(weights)).T.contiguous()  # [in, all rows]
    size = scheme.group or len(dense)
    importance = factor.diagonal().square()[place].view(-1, size, 1)
    groups = dense.view(-1, size, dense.shape[1])
    grids = LevelGrid.of(groups, scheme, dtype, dim=1, importance=importance)
    group_of = (order // size).tolist()
    dense = dense[order]
    keep = dense != 0
    change = torch.zeros_like(dense)
    levels = torch.empty_like(dense, dtype=scheme.dtype)
    one = torch.eye(min(_BLOCK, len(dense)), device=dense.device)
    for start in range(0, len(dense), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(dense)))
        square = factor[part, part]
        inverse = torch.linalg.solve_triangular(
            square, one[: len(square), : len(square)], upper=True
        )
        current = dense[part] - inverse.T @ (factor[:start, part].T @ change[:start])
        for at, column in enumerate(current):
            grid = grids.group(group_of[start + at])
            found = grid.levels(column * keep[start + at])  # [1, all rows]
            value = grid.values(found)[0].float()
            levels[start + at] = found[0]
            error = (column - value) / inverse[at, at]
            current[at + 1 :].addr_(inverse[at, at + 1 :], error, alpha=-1)
            column.copy_(value)
        torch.sub(current, dense[part], out=change[part])
    levels = levels[place].T.contiguous()
    scales = grids.scale.squeeze(1).T.contiguous()  # [all rows, groups]
    zeros = grids.zero_level.squeeze(1).T.contiguous()
    sizes = [len(weight) for weight in weights]
    stacked = (torch.split(each, sizes) for each in (levels, scales, zeros))
    return [
        RoundedMatrix(scheme, level, scale, None if scheme.symmetric else zero)
        for level, scale, zero in zip(*stacked, strict=True)
    ]
