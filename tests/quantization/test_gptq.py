"""GPTQ inside a mask against the algorithm of the paper written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.methods.sparsegpt import DAMPING
from secateur.quantization import gptq, parse_scheme, round_to_nearest
from secateur.sparsity import audit, keep_mask, parse_pattern

SCHEMES = ["w4a16:g32", "w4a16:g64:asym", "w4a16:row", "w4a16:row:asym", "w8a16", "fp8"]
PATTERNS = ["2:4", "50%", "dense"]


def problem(pattern: str, rows: int = 16, width: int = 192, seed: int = 0) -> Any:
    """(pruned weight [rows, width], Hessian, inputs): a quarter as many causes as inputs."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(4 * width, width // 4, generator=generator)
    inputs = causes @ torch.randn(width // 4, width, generator=generator)
    inputs += 0.5 * torch.randn(4 * width, width, generator=generator)
    weight = torch.randn(rows, width, generator=generator)
    if pattern != "dense":
        weight = weight * keep_mask(weight.abs(), parse_pattern(pattern))
    return weight, 2 * inputs.T @ inputs, inputs


def plain_float64(weight: Tensor, hessian: Tensor, text: str) -> Any:
    """Column after column, as in the paper; a pruned weight is set to 0 at its turn."""
    scheme = parse_scheme(text)
    lowest, highest = scheme.range
    W, H = weight.double().clone(), hessian.double()
    width = W.shape[1]
    H = H + DAMPING * H.diagonal().mean() * torch.eye(width)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    mask = weight != 0
    Q = torch.zeros_like(W)
    group = scheme.group or width
    for j in range(width):
        if j % group == 0:
            now = (W * mask)[:, j : j + group]
            low, high = now.amin(1).clamp_max(0), now.amax(1).clamp_min(0)
            if text == "fp8":
                scale = torch.maximum(-low, high) / 448
            elif scheme.symmetric:
                scale = torch.maximum(-low, high) / (2 ** (scheme.bits - 1) - 0.5)
            else:
                scale = (high - low) / (2**scheme.bits - 1)
            zero = torch.zeros_like(scale)
            if not scheme.symmetric:
                zero = (lowest - low / scale).round().clamp(lowest, highest)
        level = W[:, j] / scale + zero
        if text == "fp8":
            level = level.clamp(lowest, highest).to(torch.float8_e4m3fn).double()
        else:
            level = level.round().clamp(lowest, highest)
        Q[:, j] = torch.where(mask[:, j], (level - zero) * scale, 0)
        error = (W[:, j] - Q[:, j]) / U[j, j]
        W[:, j:] -= torch.outer(error, U[j, j:])
    return Q


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("text", SCHEMES)
def test_equals_the_paper_written_out_in_float64(text: str, pattern: str) -> None:
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
    nearest = round_to_nearest(weight, scheme, dtype)
    if scheme.bits == 8 and dtype == torch.bfloat16:
        return  # the rounding of the values to bfloat16 is as large as the grid's
    lost, plain = (((one.weight.float() - weight) @ inputs.T).norm() for one in (rounded, nearest))
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


def test_an_input_that_was_never_anything_but_zero_is_rounded_to_the_nearest() -> None:
    weight, hessian, _ = problem("dense")
    hessian[5], hessian[:, 5] = 0, 0
    scheme = parse_scheme("w4a16:row")
    (rounded,) = gptq([weight], hessian, scheme, torch.float32)
    nearest = round_to_nearest(weight, scheme, torch.float32)
    assert torch.equal(rounded.levels[:, 5], nearest.levels[:, 5])
