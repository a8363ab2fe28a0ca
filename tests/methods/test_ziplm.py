"""ZipLM's step against least squares solved anew for everything that could go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.methods.ziplm import DAMPING, ziplm


def loss_without(weight: Tensor, hessian: Tensor, gone: set[int]) -> float:
    """Least tr((W - V) H (W - V)') over all V that are zero where something is gone."""
    kept = [column for column in range(len(hessian)) if column not in gone]
    best = torch.zeros_like(weight)
    best[:, kept] = torch.linalg.solve(
        hessian[kept][:, kept], weight @ hessian[:, kept], left=False
    )
    error = weight - best
    return float((error @ hessian * error).sum())


@pytest.mark.parametrize(("size", "count"), [(1, 5), (3, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_each_goes_for_which_the_others_make_up_best(size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(12, 12, generator=generator, dtype=torch.float64)  # related
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    hessian = inputs.T @ inputs
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    expected: list[int] = []
    for _ in range(count):
        losses = {}
        for number in set(range(12 // size)) - set(expected):
            gone = {one * size + place for one in (*expected, number) for place in range(size)}
            losses[number] = loss_without(weight, damped, gone)
        expected.append(min(losses, key=lambda number: losses[number]))
    given = ziplm(weight.float(), hessian.float(), size, count)
    assert given.tolist() == expected


def test_channels_that_are_never_used_go_first() -> None:
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, [2, 5]] = 0
    gone = ziplm(torch.ones(4, 8), inputs.T @ inputs, 1, 2)
    assert {*gone.tolist()} == {2, 5}
