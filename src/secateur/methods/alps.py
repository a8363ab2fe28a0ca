"""ALPS: the mask by operator splitting (ADMM), then the best weights on that mask.

    minimise   norm2(X (W0 - W)')**2   with W in the pattern,   in the scale where diag(H) = 1

    W   = W0 - (rho W0 - rho D + V) inv(H + rho I)   fits the outputs, close to D
    D   = project(W + V / rho)                       fits the pattern: the largest weights stay
    V   = V + rho (W - D)                            the price of their difference; V / rho is kept
    rho grows the faster the more the mask still changes; the mask that no longer changes is it

    then conjugate gradients on the same error, over the kept weights alone

    W0, W, D, V [out, in]   dense weights, fitted, sparse, dual
    H [in, in]              X' X, a share of its mean diagonal added, scaled to a diagonal of 1
    X [tokens, in]          inputs of the layer

Where Wanda and SparseGPT decide about a weight once, this decides about all of them together and
changes its mind. inv(H + rho I) is formed for every rho: an iteration is one product with it. (An
eigendecomposition of H serves every rho, and makes two of it.) W is written there as W0 and what
is to change of it, where the paper has (W0 H - V + rho D) inv(H + rho I): the product's rounding is
then one of the change alone, and NVIDIA's may multiply in TF32, with the error of float32. Matrices
that read the same input share the inverse, and are solved together, their rows stacked.

Source: Meng, Behdin, Wang and Mazumder, arXiv 2406.07831. Beside code that derives from the
authors': an unstructured mask has the same count in every row by default (theirs is that of
`competition=layer`); a change of the mask counts once here where it counts as two there, so that
rho grows at changes half as large; rho never falls, and the end is a mask that does not change at
all; the mask is that of D, not of W. No mask of theirs was compared with ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from secateur.errors import NumericalError
from secateur.machine.accelerator import products_in_tf32
from secateur.methods.base import Refine, Solution, solve
from secateur.methods.parameters import WeightParams
from secateur.sparsity import Pattern, keep_mask, without_dropped
from secateur.statistics import Need, Statistics

_EVERY = 3
"""Iterations between two looks at how much the mask has changed."""
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""(share of the kept weights that changed at least, factor of rho)."""


class ALPSParams(WeightParams):
    """Parameters of ALPS."""

    damping: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Share of the Hessian's mean diagonal that is added to its diagonal."""
    rho: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Where rho begins, for a Hessian scaled to a diagonal of 1."""
    iterations: int = Field(default=300, ge=1)
    """Iterations at most; the mask usually settles before."""
    refinement: int = Field(default=5, ge=0)
    """Steps of conjugate gradients on the kept weights."""


@solve("alps", paper="https://arxiv.org/abs/2406.07831", needs={Need.HESSIAN}, params=ALPSParams)
def alps(
    weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern, params: ALPSParams
) -> Solution:
    """The mask by operator splitting (ADMM), then least squares on the weights that stay."""
    hessian, scale = _scaled(statistics.hessian, params.damping)
    sizes = [len(weight) for weight in weights]
    dense = torch.cat([weight.float() for weight in weights]) * scale  # [all rows, in]

    def mask_of(candidate: Tensor) -> Tensor:
        parts = torch.split(candidate.abs(), sizes)
        return torch.cat([keep_mask(part, pattern, params.chosen_competition) for part in parts])

    rho, inverse = params.rho, _inverse(hessian, params.rho)
    keep = before = mask_of(dense)
    sparse, dual = without_dropped(dense, keep), torch.zeros_like(dense)
    for iteration in range(1, params.iterations + 1):
        base = dense + dual
        with products_in_tf32(dense.device):  # W + V / rho
            aim = torch.addmm(base, base - sparse, inverse, alpha=-rho)
        keep = mask_of(aim)
        sparse = without_dropped(aim, keep)
        torch.sub(aim, sparse, out=dual)
        if iteration % _EVERY == 0:
            changed = float((keep & ~before).sum() / keep.sum().clamp_min(1))
            if changed == 0:
                break
            before = keep
            growth = next(factor for least, factor in _GROWTH if changed >= least)
            rho *= growth
            dual /= growth
            inverse = _inverse(hessian, rho)
    target = dense @ hessian  # [all rows, in]
    del dense, dual, base, aim  # each as large as all weights, in float32
    refined = on_mask(sparse, target, hessian, keep, params.refinement)
    # A dead input is scaled to nothing there, and whatever stands on it does nothing.
    solved = torch.where(scale > 0, refined / scale, 0)
    return Solution(torch.split(without_dropped(solved, keep), sizes), torch.split(keep, sizes))


@solve(
    "alps-ro",
    paper="https://arxiv.org/abs/2406.07831",
    needs={Need.HESSIAN},
    params=ALPSParams,
    refine=Refine.REGIONAL,
)
def alps_with_regional_optimisation(
    weights: Sequence[Tensor], statistics: Statistics, pattern: Pattern, params: ALPSParams
) -> Solution:
    """ALPS, then regional optimisation of the kept weights (RO)."""
    return alps(weights, statistics, pattern, params)


def on_mask(start: Tensor, target: Tensor, hessian: Tensor, keep: Tensor, steps: int) -> Tensor:
    """Least squares over the kept weights, by conjugate gradients in all rows at once.

    Args:
        start: [rows, in], zero where pruned.
        target: W0 H, [rows, in].
        hessian: float32 [in, in], positive definite.
        keep: bool [rows, in].
        steps: of conjugate gradients.

    Returns:
        [rows, in], zero where pruned; no row has a larger error than `start`.
    """
    solution = start
    residual = without_dropped(target - start @ hessian, keep)
    direction = residual
    square = residual.square().sum(1, keepdim=True)  # [rows, 1]
    for _ in range(steps):
        image = without_dropped(direction @ hessian, keep)
        curvature = (direction * image).sum(1, keepdim=True)
        length = torch.where(curvature > 0, square / curvature, 0)
        solution = solution + length * direction
        residual = residual - length * image
        after = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(square > 0, after / square, 0) * direction
        square = after
    return solution


def _inverse(hessian: Tensor, rho: float) -> Tensor:
    """inv(H + rho I), [in, in], of an H that is not negative definite.

    Raises:
        NumericalError: the Hessian is negative beyond rho.
    """
    shifted = hessian.clone()
    shifted.diagonal().add_(rho)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        raise NumericalError(
            "the Hessian is not positive definite",
            hint="more calibration text, or method wanda",
        )
    return torch.cholesky_inverse(factor)


def _scaled(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The damped Hessian with a diagonal of 1, and what weights are multiplied by for it.

    Returns:
        float32 [in, in]; [in], 0 for dead inputs, so that they go first.

    Raises:
        NumericalError: the damped Hessian has a negative diagonal.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if bool((diagonal < 0).any()):
        raise NumericalError("the Hessian has a negative diagonal")
    mean = diagonal[~dead].mean() if not bool(dead.all()) else diagonal.new_ones(())
    scale = (diagonal + damping * mean).sqrt().masked_fill(dead, 1)  # [in]
    scaled = (hessian / scale).div_(scale[:, None])
    scaled.diagonal().fill_(1)
    return scaled, scale.masked_fill(dead, 0)
