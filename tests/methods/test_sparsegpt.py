"""SparseGPT against least squares by brute force and against a plain float64 loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.methods import get
from secateur.methods.sparsegpt import SparseGPTParams, upper_factor
from secateur.sparsity import NofM, Unstructured, audit, keep_mask, parse_pattern
from secateur.statistics import Need, Statistics

DAMPING = 0.01


def correlated_inputs(tokens: int, width: int, seed: int = 0) -> Any:
    """A quarter as many causes as inputs, and a little noise of each input's own."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, max(1, width // 4), generator=generator)
    mix = torch.randn(causes.shape[1], width, generator=generator)
    return causes @ mix + 0.5 * torch.randn(tokens, width, generator=generator)


def problem(rows: int = 16, width: int = 64, seed: int = 0) -> Any:
    """(weight, inputs, statistics) of one matrix."""
    inputs = correlated_inputs(4 * width, width, seed)
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed + 1))
    return weight, inputs, Statistics({Need.HESSIAN: inputs.T @ inputs}, sequences=1)


def solve(weights: Any, statistics: Any, text: str, **parameters: Any) -> Any:
    solver = get("sparsegpt").solve
    assert solver is not None
    return solver(weights, statistics, parse_pattern(text), SparseGPTParams(**parameters))


def damped(hessian: Tensor) -> Any:
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def plain_float64(weight: Tensor, hessian: Tensor, pattern: Any, per_row: bool) -> Any:
    """Column after column, as the algorithm is written in the paper; one block for the mask."""
    W, H = weight.double().clone(), damped(hessian.double())
    width = W.shape[1]
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    keep = torch.ones_like(W, dtype=torch.bool)
    if isinstance(pattern, Unstructured):
        score = W**2 / U.diagonal() ** 2
        groups = score if per_row else score.view(1, -1)
        pruned = int(groups.shape[1] * pattern.ratio + 1e-6)
        order = groups.argsort(dim=1, stable=True)[:, :pruned]
        keep = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False).view_as(W)
    for j in range(width):
        if isinstance(pattern, NofM) and j % pattern.m == 0:
            score = W[:, j : j + pattern.m] ** 2 / U.diagonal()[j : j + pattern.m] ** 2
            order = score.argsort(dim=1, stable=True)[:, : pattern.m - pattern.n]
            keep[:, j : j + pattern.m].scatter_(1, order, False)
        error = torch.where(keep[:, j], 0, W[:, j]) / U[j, j]
        W[:, j:] -= torch.outer(error, U[j, j:])
    return W * keep, keep


@pytest.mark.parametrize("width", [24, 64, 200])
@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("2:4", {}),
        ("4:8", {}),
        ("2:4", {"block_size": 16}),
        ("50%", {"block_size": 200}),
        ("50%", {"block_size": 200, "competition": "row"}),
        ("30%", {"block_size": 200}),
    ],
)
def test_equals_the_paper_written_out_in_float64(width: int, text: str, parameters: Any) -> None:
    weight, inputs, statistics = problem(width=width)
    pattern = parse_pattern(text)
    per_row = parameters.get("competition") == "row"
    expected, keep = plain_float64(weight, statistics.hessian, pattern, per_row)
    found = solve([weight], statistics, text, **parameters)
    assert (found.keep[0] == keep).float().mean() > 0.999
    if torch.equal(found.keep[0], keep):
        torch.testing.assert_close(found.weights[0], expected.float(), rtol=1e-3, atol=1e-4)
    both = (found.weights[0], expected.float())
    errors = [((pruned - weight) @ inputs.T).norm() for pruned in both]
    torch.testing.assert_close(*errors, rtol=1e-3, atol=0)


@pytest.mark.parametrize("text", ["3:6", "50%"])
def test_every_kept_weight_is_the_least_squares_answer_to_those_on_its_left(text: str) -> None:
    """Six columns by brute force: with columns < j as they came out, solve for the others."""
    weight, _, statistics = problem(rows=10, width=6)
    solution = solve([weight], statistics, text)
    found, keep = solution.weights[0].double(), solution.keep[0]
    H, W = damped(statistics.hessian).double(), weight.double()
    for j in range(6):
        change = (found - W)[:, :j]  # what was done on the left
        # minimise (change, x) H (change, x)' over x, the change of columns j and later
        best = -torch.linalg.solve(H[j:, j:], H[j:, :j] @ change.T).T  # [out, 6 - j]
        kept = keep[:, j]
        torch.testing.assert_close(
            found[kept, j], (W[:, j] + best[:, 0])[kept], rtol=1e-3, atol=1e-4
        )


def test_the_score_is_the_error_of_leaving_one_weight_out() -> None:
    """W**2 R_jj**2, R_jj = 1 / U_jj, is the least squared error with that weight zero."""
    weight, _, statistics = problem(rows=1, width=6)
    H, W = damped(statistics.hessian).double(), weight.double()
    factor, _ = upper_factor(statistics.hessian, torch.zeros(6, dtype=torch.bool), DAMPING)
    for j in range(6):
        right = H[j:, j:]  # the columns that can still answer
        e = torch.zeros(6 - j, dtype=torch.float64)
        e[0] = 1
        others = right[1:, 1:]
        change = torch.zeros(6 - j, dtype=torch.float64)
        change[0] = -W[0, j]
        if j < 5:
            change[1:] = -torch.linalg.solve(others, right[1:, 0] * change[0])
        error = change @ right @ change
        torch.testing.assert_close(
            (weight[0, j] ** 2 * factor[j, j] ** 2).double(), error, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("text", ["2:4", "50%"])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_below_wandas_on_correlated_inputs(text: str, seed: int) -> None:
    weight, inputs, statistics = problem(seed=seed)
    wanda = weight * keep_mask(weight.abs() * inputs.norm(dim=0), parse_pattern(text))
    solved = solve([weight], statistics, text).weights[0]

    def error(pruned: Any) -> Any:
        return float(((pruned - weight) @ inputs.T).norm())

    assert error(solved) < 0.8 * error(wanda)


@pytest.mark.parametrize(
    ("text", "competition"), [("2:4", "layer"), ("50%", "layer"), ("50%", "row")]
)
def test_stacked_matrices_are_solved_as_they_would_be_alone(text: str, competition: str) -> None:
    _, _, statistics = problem(width=64)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(rows, 64, generator=generator) for rows in (8, 4, 20)]
    together = solve(weights, statistics, text, competition=competition, block_size=16)
    for number, weight in enumerate(weights):
        alone = solve([weight], statistics, text, competition=competition, block_size=16)
        assert torch.equal(together.keep[number], alone.keep[0])
        torch.testing.assert_close(together.weights[number], alone.weights[0])
        assert audit(together.weights[number], parse_pattern(text)).holds


@pytest.mark.parametrize("block_size", [8, 16, 24, 64, 128])
def test_n_of_m_does_not_depend_on_the_block_size(block_size: int) -> None:
    weight, _, statistics = problem(width=64)
    expected = solve([weight], statistics, "2:4", block_size=64)
    found = solve([weight], statistics, "2:4", block_size=block_size)
    assert torch.equal(found.keep[0], expected.keep[0])
    torch.testing.assert_close(found.weights[0], expected.weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("competition", ["layer", "row"])
@pytest.mark.parametrize("ratio", ["30%", "50%", "71%"])
@pytest.mark.parametrize("block_size", [7, 16, 128])
def test_unstructured_counts_are_exact_over_all_blocks(
    competition: str, ratio: str, block_size: int
) -> None:
    weight, _, statistics = problem(rows=11, width=50)
    keep = solve([weight], statistics, ratio, competition=competition, block_size=block_size).keep[
        0
    ]
    pattern = parse_pattern(ratio)
    if competition == "row":
        assert set((~keep).sum(1).tolist()) == {pattern.pruned_of(50)}
    else:
        assert int((~keep).sum()) == pattern.pruned_of(11 * 50)


def test_a_hessian_that_is_not_positive_gets_more_damping_and_a_notice() -> None:
    weight, _, _ = problem(rows=4, width=8)
    inputs = correlated_inputs(3, 8)  # rank 3 of 8
    hessian = inputs.T @ inputs - 0.05 * (inputs.square().sum() / 8) * torch.eye(8)
    solution = solve([weight], Statistics({Need.HESSIAN: hessian}, 1), "2:4")
    assert torch.isfinite(solution.weights[0]).all()
    assert solution.notices == ("the Hessian was singular: its damping grew from 0.01 to 0.1",)


def test_three_tokens_for_sixty_four_inputs_are_enough_not_to_fail() -> None:
    weight, _, _ = problem(width=64)
    inputs = correlated_inputs(3, 64)
    solution = solve([weight], Statistics({Need.HESSIAN: inputs.T @ inputs}, 1), "50%")
    assert torch.isfinite(solution.weights[0]).all()
    assert audit(solution.weights[0], Unstructured(0.5)).holds


def test_kept_weights_of_dead_inputs_stay_as_they_are() -> None:
    weight, inputs, _ = problem(width=8)
    inputs[:, :3] = 0
    solution = solve([weight], Statistics({Need.HESSIAN: inputs.T @ inputs}, 1), "2:4")
    assert not solution.keep[0][:, 3].logical_not().any()  # the live one of the first group
    kept = solution.keep[0][:, :3]
    assert torch.equal(solution.weights[0][:, :3][kept], weight[:, :3][kept])
