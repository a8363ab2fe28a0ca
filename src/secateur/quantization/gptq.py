"""GPTQ inside a mask: weights rounded column by column, those to the right make up for the error.

    H      = mean over sequences of 2 X_n' X_n, a share of its mean diagonal added    [in, in]
    U      the upper Cholesky factor of inv(H),  U' U = inv(H)                         [in, in]
    for every column j, left to right:
        Q[:, j]      = the grid's value nearest to W[:, j]; 0 where the weight is pruned
        error[:, j]  = (W[:, j] - Q[:, j]) / U[j, j]
        W[:, j + 1:] -= outer(error[:, j], U[j, j + 1:])

    W [out, in]  pruned weight;  X_n [tokens, in]  inputs of the layer in sequence n

A pruned weight is one that is 0. Errors do move it, and it is set back to 0 at its turn, which is
an error like that of rounding and moves the weights to its right: that is how SparseGPT prunes and
quantises at once (section 3.5 of its paper). To leave the pruned weights out of `outer` would be
simpler and worse, for what they were to make up for would be lost.

The grid of a group is found at its first column, from the weights as they are by then; that of a
row from the weights as they were given. Matrices that read the same input share H and are solved
together, their rows stacked. U is never formed but for its part on a block of columns: see
`methods/sparsegpt.py`.

Source: Frantar et al., arXiv 2210.17323, algorithm 1; Frantar and Alistarh, arXiv 2301.00774.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.methods.sparsegpt import DAMPING, upper_factor
from secateur.quantization.grid import LevelGrid, RoundedMatrix
from secateur.quantization.scheme import Scheme

_BLOCK = 128
"""Columns that are solved before those to their right are corrected, where a row is one group."""


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
    factor, _ = upper_factor(hessian, hessian.diagonal() == 0, DAMPING)  # inv(U)
    # Turned over, so that a column is one stretch of memory.
    dense = torch.cat(list(weights)).T.contiguous()  # [in, all rows]
    keep = dense != 0
    change = torch.zeros_like(dense)
    levels = torch.empty_like(dense, dtype=scheme.dtype)
    width = scheme.group or _BLOCK
    one = torch.eye(min(width, len(dense)), device=dense.device)
    grids = [] if scheme.group else [LevelGrid.of(dense, scheme, dtype, dim=0)]
    for start in range(0, len(dense), width):
        part = slice(start, min(start + width, len(dense)))
        current = dense[part]
        inverse = torch.linalg.solve_triangular(
            factor[part, part], one[: len(current), : len(current)], upper=True
        )
        current = current - inverse.T @ (factor[:start, part].T @ change[:start])
        if scheme.group:
            grids.append(LevelGrid.of(current * keep[part], scheme, dtype, dim=0))
        grid = grids[-1]
        for at, column in enumerate(current):
            found = grid.levels(column * keep[start + at])  # [1, all rows]
            value = grid.values(found)[0].float()
            levels[start + at] = found[0]
            error = (column - value) / inverse[at, at]
            current[at + 1 :].addr_(inverse[at, at + 1 :], error, alpha=-1)
            column.copy_(value)
        torch.sub(current, dense[part], out=change[part])
    scales = torch.cat([grid.scale for grid in grids]).T.contiguous()  # [all rows, groups]
    zeros = torch.cat([grid.zero_level for grid in grids]).T.contiguous()
    sizes = [len(weight) for weight in weights]
    stacked = (torch.split(each, sizes) for each in (levels.T.contiguous(), scales, zeros))
    return [
        RoundedMatrix(scheme, level, scale, None if scheme.symmetric else zero)
        for level, scale, zero in zip(*stacked, strict=True)
    ]
