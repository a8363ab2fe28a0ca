"""GPTQ inside a mask against its algorithm written out in float64, and against llm-compressor's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import golden_gptq
from secateur.methods.sparsegpt import DAMPING
from secateur.quantization import Scheme, gptq, parse_scheme, round_to_nearest
from secateur.quantization.grid import REACHES
from secateur.sparsity import audit, keep_mask, parse_pattern

SCHEMES = ["w4a16:g32", "w4a16:g64:asym", "w4a16:row", "w4a16:row:asym", "w8a16", "fp8"]
PATTERNS = ["2:4", "50%", "dense"]


def problem(pattern: str, rows: int = 16, width: int = 192, seed: int = 0) -> Any:
    """(pruned weight [rows, width], Hessian, inputs): a quarter as many causes as inputs.

    Some inputs are far larger than others.
    """
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(4 * width, width // 4, generator=generator)
    inputs = causes @ torch.randn(width // 4, width, generator=generator)
    inputs += 0.5 * torch.randn(4 * width, width, generator=generator)
    inputs *= torch.randn(width, generator=generator).exp()
    weight = torch.randn(rows, width, generator=generator)
    if pattern != "dense":
        weight = weight * keep_mask(weight.abs(), parse_pattern(pattern))
    return weight, 2 * inputs.T @ inputs, inputs


def nearest(weights: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """The values of a grid that are nearest to some weights, all float64."""
    lowest, highest = scheme.range
    if scheme.floating:
        return (weights / scale).clamp(lowest, highest).to(scheme.dtype).double() * scale
    return ((weights / scale + zero).round().clamp(lowest, highest) - zero) * scale


def best_grid(weights: Tensor, importance: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """(scale, zero) of a group by trying them all, float64 [rows, 1] each.

    Args:
        weights: float64 [rows, group].
        importance: float64 [group], of an error in each column.
        scheme: what the group is rounded to.
    """
    lowest, highest = scheme.range
    low = weights.amin(1, keepdim=True).clamp_max(0)
    high = weights.amax(1, keepdim=True).clamp_min(0)
    tried = []
    for share in (1.0,) if scheme.floating else REACHES:
        if scheme.floating:
            scale = torch.maximum(-low, high) / 448
        elif scheme.symmetric:
            scale = share * torch.maximum(-low, high) / (2 ** (scheme.bits - 1) - 0.5)
        else:
            scale = share * (high - low) / (2**scheme.bits - 1)
        zero = torch.zeros_like(scale)
        if not scheme.symmetric:
            zero = (lowest - share * low / scale).round().clamp(lowest, highest)
        lost = (nearest(weights, scale, zero, scheme) - weights).square() @ importance
        tried.append((lost, scale, zero))
    first = torch.stack([lost for lost, *_ in tried]).argmin(0)  # [rows]
    rows = torch.arange(len(weights))
    return (
        torch.stack([scale for _, scale, _ in tried])[first, rows],
        torch.stack([zero for *_, zero in tried])[first, rows],
    )


def plain_float64(weight: Tensor, hessian: Tensor, text: str) -> Any:
    """Column after column, the largest input first; a pruned weight is set to 0 at its turn."""
    scheme = parse_scheme(text)
    order = hessian.diagonal().argsort(descending=True).tolist()
    W, H = weight.double().clone(), hessian.double()
    width = W.shape[1]
    H = H + DAMPING * H.diagonal().mean() * torch.eye(width)
    U = torch.linalg.cholesky(torch.linalg.inv(H[order][:, order]), upper=True)
    cost = torch.empty(width, dtype=torch.float64)
    cost[order] = 1 / U.diagonal().square()
    group = scheme.group or width
    grids = [
        best_grid(W[:, start : start + group], cost[start : start + group], scheme)
        for start in range(0, width, group)
    ]
    mask = weight != 0
    Q = torch.zeros_like(W)
    for at, j in enumerate(order):
        scale, zero = grids[j // group]
        value = nearest(W[:, [j]], scale, zero, scheme)[:, 0]
        Q[:, j] = torch.where(mask[:, j], value, 0)
        error = (W[:, j] - Q[:, j]) / U[at, at]
        W[:, order[at:]] -= torch.outer(error, U[at, at:])
    return Q


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("text", SCHEMES)
def test_equals_its_algorithm_written_out_in_float64(text: str, pattern: str) -> None:
    weight, hessian, inputs = problem(pattern)
    (rounded,) = gptq([weight], hessian, parse_scheme(text), torch.float32)
    wanted = plain_float64(weight, hessian, text)
    # In float32 a weight in the middle between two levels may fall on the other side, and move
    # those to its right: rows without one are equal, and they are nearly all.
    equal = torch.isclose(rounded.weight.double(), wanted, rtol=1e-4, atol=1e-6).all(dim=1)
    assert equal.float().mean() >= 0.8
    lost = ((rounded.weight.double() - weight) @ inputs.double().T).norm()
    assert lost <= 1.02 * ((wanted - weight) @ inputs.double().T).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("text", SCHEMES)
def test_zeros_stay_zero_and_the_error_is_less_than_of_the_nearest(
    text: str, pattern: str, dtype: torch.dtype
) -> None:
    weight, hessian, inputs = problem(pattern, seed=1)
    scheme = parse_scheme(text)
    (rounded,) = gptq([weight], hessian, scheme, dtype)
    assert rounded.weight.dtype == dtype
    assert bool((rounded.weight[weight == 0] == 0).all())
    if pattern != "dense":
        assert audit(rounded.weight, parse_pattern(pattern)).holds
    plainly = round_to_nearest(weight, scheme, dtype)
    if scheme.bits == 8 and dtype == torch.bfloat16:
        return  # the rounding of the values to bfloat16 is as large as the grid's
    lost, plain = (((one.weight.float() - weight) @ inputs.T).norm() for one in (rounded, plainly))
    assert lost < 0.8 * plain


def test_matrices_together_are_as_each_alone() -> None:
    first, hessian, _ = problem("2:4")
    second, *_ = problem("50%", rows=8, seed=2)
    scheme = parse_scheme("w4a16:g64:asym")
    together = gptq([first, second], hessian, scheme, torch.bfloat16)
    for weight, one in zip((first, second), together, strict=True):
        (alone,) = gptq([weight], hessian, scheme, torch.bfloat16)
        assert torch.equal(alone.levels, one.levels)
        assert torch.equal(alone.scale, one.scale)
        assert one.zero is not None
        assert one.zero.shape == one.scale.shape == (len(weight), 3)


@pytest.mark.parametrize("text", golden_gptq.SCHEMES)
@pytest.mark.parametrize("matrix", golden_gptq.MATRICES)
def test_equals_llm_compressor_where_grids_reach_as_far_as_the_weights(
    matrix: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.quantization.grid.REACHES", (1.0,))  # its grids are not searched
    kept = golden_gptq.kept()
    weight, hessian = kept[f"{matrix}/weight"], kept[f"{matrix}/hessian"]
    wanted = {
        part: kept[f"{matrix}/{text}/{part}"] for part in ("rounded", "scale", "zero", "loss")
    }
    (rounded,) = gptq([weight], hessian, parse_scheme(text), torch.float32)
    torch.testing.assert_close(rounded.scale, wanted["scale"], rtol=1e-6, atol=0)
    if rounded.zero is not None:
        assert torch.equal(rounded.zero, wanted["zero"])
    # Both compute in float32, each in its own order: a weight in the middle between two levels
    # may fall on either side, and then moves the others of its row. On the machine that asked
    # none did; a row may on another.
    equal = torch.isclose(rounded.weight, wanted["rounded"], rtol=1e-5, atol=1e-6).all(dim=1)
    assert int((~equal).sum()) <= 1
    damped = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    change = rounded.weight.double() - weight
    loss = ((change @ damped) * change).sum() / 2
    torch.testing.assert_close(loss.float(), wanted["loss"][0], rtol=1e-3, atol=0)


def test_an_input_that_was_never_anything_but_zero_is_rounded_to_the_nearest() -> None:
    weight, hessian, _ = problem("dense")
    hessian[5], hessian[:, 5] = 0, 0
    scheme = parse_scheme("w4a16:row")
    (rounded,) = gptq([weight], hessian, scheme, torch.float32)
    grid = rounded.scale[:, 0]
    assert torch.equal(
        rounded.levels[:, 5], (weight[:, 5] / grid).round().clamp(-8, 7).to(torch.int8)
    )
