"""ZipLM's step: structures go one at a time, each time the one whose loss the others best make up.

    C = inverse of (H + damping * mean diagonal of H)
    repeat as often as structures go:
        s   the structure with the least  trace(W_s  inverse(C_ss)  W_s')
        W = W - W_s inverse(C_ss) C_s      what the others make up for it
        C = C - C'_s inverse(C_ss) C_s

    W [out, in]  the matrix that reads the structures, s the columns that read one of them
    H [in, in]   its Hessian (`statistics/hessian.py`)

That is SparseGPT's step for many columns at once. Only the choice is made here; the columns that
are left take over by least squares when the narrower model is swept (`blocks/narrowed.py`), behind
the narrower blocks below. The paper's search for a time of inference is no part of this: every
block loses as many.

Source: Kurtic, Frantar and Alistarh, arXiv 2302.04089, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.base import remove
from secateur.methods.sparsegpt import DAMPING, upper_factor


@remove("ziplm", "of_hessian", paper="https://arxiv.org/abs/2302.04089")
def ziplm(weight: Tensor, hessian: Tensor, size: int, count: int) -> Tensor:
    """The structures whose loss the rest of their matrix makes up for best, one at a time.

    Args:
        weight: float32 [out, in]; is not changed.
        hessian: float32 [in, in].
        size: columns of one structure, which follow each other.
        count: how many go.

    Returns:
        int64 [count], their numbers in the order in which they go.

    Raises:
        NumericalError: the Hessian has no inverse.
    """
    dead = hessian.diagonal() == 0
    factor, _ = upper_factor(hessian, dead, DAMPING)
    one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    half = torch.linalg.solve_triangular(factor, one, upper=True)
    inverse = half.T @ half  # of R R'
    left, total = weight.masked_fill(dead, 0), len(hessian) // size
    gone = torch.empty(count, dtype=torch.int64, device=weight.device)
    away = torch.zeros(total, dtype=torch.bool, device=weight.device)
    places = torch.arange(size, device=weight.device)
    every = torch.arange(total, device=weight.device)
    for turn in range(count):
        own = inverse.view(total, size, total, size)[every, :, every]  # [total, size, size]
        own = own + torch.diag_embed(away[:, None].expand(-1, size).to(own.dtype))
        goes = _losses(left, own).masked_fill(away, torch.inf).argmin()
        gone[turn], away[goes] = goes, True
        rows = goes * size + places
        left -= torch.linalg.solve(own[goes], left[:, rows], left=False) @ inverse[rows]
        inverse -= inverse[:, rows] @ torch.linalg.solve(own[goes], inverse[rows])
        left[:, rows] = 0
        inverse[rows] = 0
        inverse[:, rows] = 0
    return gone


def _losses(weight: Tensor, own: Tensor) -> Tensor:
    """What the loss of every structure costs once the others make up for it, float32 [structures].

    Args:
        weight: [out, in].
        own: the blocks C_ss of the inverse, [structures, size, size].
    """
    total, size, _ = own.shape
    if size == 1:
        alone: Tensor = weight.square().sum(dim=0)
        return alone / own.flatten()
    columns = weight.view(-1, total, size).permute(1, 0, 2)  # [structures, out, size]
    solved: Tensor = torch.linalg.solve(own, columns, left=False)
    return (solved * columns).sum(dim=(1, 2))
