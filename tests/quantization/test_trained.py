"""Weights and scales that are trained through the rounding: values, gradients, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.quantization import RoundedMatrix, TrainedGrid, parse_scheme, round_to_nearest

SCHEMES = ["w4a16:g32", "w4a16:g32:asym", "w8a16", "w8a16:row:asym", "fp8"]


def begun(text: str, seed: int = 0) -> tuple[Tensor, RoundedMatrix, TrainedGrid, Tensor]:
    """A matrix [6, 64] with zeros, rounded, its grid, and the weights that are trained."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    weight[:, ::3] = 0
    rounded = round_to_nearest(weight, parse_scheme(text), torch.bfloat16)
    grid = TrainedGrid(rounded)
    return weight, rounded, grid, grid.begin(weight)


@pytest.mark.parametrize("text", SCHEMES)
def test_it_begins_with_what_was_rounded(text: str) -> None:
    weight, rounded, grid, start = begun(text)
    assert torch.equal(grid.value(start).to(torch.bfloat16), rounded.weight)
    assert torch.equal(grid.rounded(start).levels.float(), rounded.levels.float())
    assert torch.equal(grid.rounded(start).scale, rounded.scale)
    near = (start - weight).abs() <= (rounded.weight.float() - weight).abs()
    assert bool(near.all())  # and as near to what it was as that allows
    assert not start[weight == 0].any()


@pytest.mark.parametrize("text", SCHEMES)
def test_what_is_stored_is_the_value_to_the_bit_and_zero_stays_zero(text: str) -> None:
    weight, _, grid, start = begun(text)
    moved = (start + 0.3 * torch.randn_like(start)) * (weight != 0)
    grid.growth = 0.2 * torch.randn_like(grid.growth)
    stored = grid.rounded(moved)
    assert torch.equal(stored.weight, grid.value(moved).to(torch.bfloat16))
    assert not stored.weight[weight == 0].any()
    assert bool((stored.scale > 0).all())


@pytest.mark.parametrize("text", [text for text in SCHEMES if text != "fp8"])
def test_gradients_are_those_of_the_straight_through_estimator(text: str) -> None:
    """By hand in float64: the weight's where its level is no end, the scale's as in LSQ."""
    scheme = parse_scheme(text)
    _, rounded, grid, start = begun(text)
    moved = (1.5 * start).requires_grad_()  # so that some lie beyond the ends
    grid.growth = torch.full_like(grid.growth, 0.1).requires_grad_()
    sent = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    grid.value(moved).backward(sent)  # type: ignore[no-untyped-call]

    lowest, highest = scheme.range
    groups = rounded.scale.shape[1]
    scale = (rounded.scale.double() * grid.growth.detach().double().exp()).bfloat16().double()
    wide = scale.repeat_interleave(64 // groups, dim=1)
    zero = torch.zeros_like(wide)
    if rounded.zero is not None:
        zero = rounded.zero.double().repeat_interleave(64 // groups, dim=1)
    place = moved.detach().double() / wide + zero
    inside = (place >= lowest) & (place <= highest)
    assert not inside.all()
    level = place.round().clamp(lowest, highest)
    of_scale = sent * ((level - zero) - torch.where(inside, moved.detach().double() / wide, 0))
    of_scale = of_scale.view(6, groups, -1).sum(-1)
    growing = rounded.scale.double() * grid.growth.detach().double().exp()
    torch.testing.assert_close(moved.grad, torch.where(inside, sent, 0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grid.growth.grad, (of_scale * growing).float(), rtol=1e-4, atol=1e-4)
