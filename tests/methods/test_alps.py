"""ALPS against its equations with an explicit inverse, and against every mask that there is."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from secateur.methods.alps import ALPSParams, alps, on_mask
from secateur.methods.sparsegpt import SparseGPTParams, sparsegpt
from secateur.methods.wanda import WandaParams, wanda
from secateur.sparsity import NofM, keep_mask
from secateur.statistics import Need, Statistics

ROWS, COLUMNS = 6, 8
TWO_OF_FOUR = NofM(2, 4)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Weights, and the Hessian of inputs that go together: float32."""
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=chance)
    inputs = torch.randn(200, COLUMNS, generator=chance) @ mixing
    return torch.randn(ROWS, COLUMNS, generator=chance), inputs.T @ inputs


def solve(weight: Tensor, hessian: Tensor, **parameters: float) -> tuple[Tensor, Tensor]:
    statistics = Statistics({Need.HESSIAN: hessian}, 1)
    solution = alps([weight], statistics, TWO_OF_FOUR, ALPSParams.model_validate(parameters))
    return solution.keep[0], solution.weights[0]


def errors(weight: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """Squared output error of every row."""
    lost = weight - pruned
    return ((lost @ hessian) * lost).sum(1)


def least_squares(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a mask, row by row, in float64."""
    solved = torch.zeros_like(weight)
    for row, kept in enumerate(keep):
        places = kept.nonzero().flatten()
        gram = hessian.double()[places][:, places]
        wanted = hessian.double()[places] @ weight[row].double()
        solved[row, places] = torch.linalg.solve(gram, wanted).float()
    return solved


def test_the_first_iterations_are_those_of_the_equations() -> None:
    weight, hessian = problem(0)
    damping, rho = 1e-6, 0.1
    diagonal = hessian.diagonal() + damping * hessian.diagonal().mean()
    scale = diagonal.sqrt()
    scaled = hessian / scale / scale[:, None]
    scaled.diagonal().fill_(1)
    dense = weight * scale
    sparse = dense * keep_mask(dense.abs(), TWO_OF_FOUR)
    dual = torch.zeros_like(dense)
    inverse = torch.linalg.inv((scaled + rho * torch.eye(COLUMNS)).double()).float()
    for _ in range(2):
        fitted = (dense @ scaled - dual + rho * sparse) @ inverse
        keep = keep_mask((fitted + dual / rho).abs(), TWO_OF_FOUR)
        sparse = (fitted + dual / rho) * keep
        dual = dual + rho * (fitted - sparse)
    kept, found = solve(weight, hessian, damping=damping, iterations=2, refinement=0)
    assert torch.equal(kept, keep)
    torch.testing.assert_close(found, sparse / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradients_find_the_least_squares_on_the_mask(seed: int) -> None:
    weight, hessian = problem(seed)
    hessian = hessian / hessian.diagonal().mean()
    keep = keep_mask(weight.abs(), TWO_OF_FOUR)
    best = least_squares(weight, hessian, keep)
    found = on_mask(weight * keep, weight @ hessian, hessian, keep, steps=30)
    assert torch.equal(found != 0, keep)
    torch.testing.assert_close(
        errors(weight, found, hessian), errors(weight, best, hessian), rtol=1e-2, atol=1e-4
    )
    few = on_mask(weight * keep, weight @ hessian, hessian, keep, steps=1)
    assert (errors(weight, few, hessian) <= errors(weight, weight * keep, hessian) + 1e-5).all()


def test_the_mask_is_near_the_best_there_is_and_better_than_the_others() -> None:
    """Of all 36 masks of two groups the best, row by row; over ten problems together."""
    groups = [[column in chosen for column in range(4)] for chosen in combinations(range(4), 2)]
    best = found = one_shot = by_score = 0.0
    for seed in range(10):
        weight, hessian = problem(seed)
        statistics = Statistics({Need.HESSIAN: hessian}, 1)
        every = [
            errors(weight, least_squares(weight, hessian, keep), hessian)
            for left, right in product(groups, groups)
            for keep in [torch.tensor([left + right]).expand(ROWS, -1)]
        ]
        best += float(torch.stack(every).min(0).values.sum())
        found += float(errors(weight, solve(weight, hessian)[1], hessian).sum())
        solution = sparsegpt([weight], statistics, TWO_OF_FOUR, SparseGPTParams())
        one_shot += float(errors(weight, solution.weights[0], hessian).sum())
        norm = Statistics({Need.INPUT_NORM: hessian.diagonal().sqrt()}, 1)
        keep = keep_mask(wanda(weight, norm, WandaParams()), TWO_OF_FOUR)
        by_score += float(errors(weight, weight * keep, hessian).sum())
    assert best <= found < one_shot < by_score
    assert found < 1.5 * best


def test_matrices_that_share_an_input_are_solved_as_if_alone() -> None:
    weight, hessian = problem(4)
    other, _ = problem(5)
    statistics = Statistics({Need.HESSIAN: hessian}, 1)
    fixed = ALPSParams(iterations=5)
    both = alps([weight, other], statistics, TWO_OF_FOUR, fixed)
    for place, alone in enumerate((weight, other)):
        single = alps([alone], statistics, TWO_OF_FOUR, fixed)
        assert both.keep[place].shape == alone.shape
        agree = (both.keep[place] == single.keep[0]).float().mean()
        assert agree > 0.9  # rho grows by what changes in all of them


def as_tf32(values: Tensor) -> Tensor:
    """Float32 rounded to 11 bits."""
    bits = values.contiguous().view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1)).bitwise_and(~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("seed", range(3))
def test_products_in_tf32_leave_the_same_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few causes behind all inputs, so that the Hessian's eigenvalues lie far apart."""
    chance = torch.Generator().manual_seed(seed)
    causes = torch.randn(400, 12, generator=chance) @ torch.randn(12, 96, generator=chance)
    inputs = causes + 0.1 * torch.randn(400, 96, generator=chance)
    weight, hessian = torch.randn(64, 96, generator=chance), inputs.T @ inputs
    plain = solve(weight, hessian)
    multiply, roundings = torch.addmm, []

    def rounded(base: Tensor, a: Tensor, b: Tensor, *, alpha: float) -> Tensor:
        roundings.append(float((as_tf32(a) - a).abs().max()))
        return multiply(base, as_tf32(a), as_tf32(b), alpha=alpha)

    monkeypatch.setattr(torch, "addmm", rounded)
    found = solve(weight, hessian)
    assert max(roundings) > 0
    assert not torch.equal(found[1], plain[1])
    wanted = errors(weight, plain[1], hessian).sum()
    torch.testing.assert_close(errors(weight, found[1], hessian).sum(), wanted, rtol=0.02, atol=0)
