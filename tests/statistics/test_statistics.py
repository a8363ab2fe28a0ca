from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.statistics import GradientNorm, Hessian, InputNorm, Need, Statistics
from secateur.statistics import hessian as hessian_module
from secateur.statistics import product as product_module


@pytest.fixture
def inputs() -> Any:
    return torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))  # [batch, tokens, in]


def test_input_norm_runs_over_all_tokens_of_all_batches(inputs: Any) -> None:
    norm = InputNorm(8)
    for batch in inputs.split(2):
        norm.add(batch)
    torch.testing.assert_close(norm.norm, inputs.reshape(-1, 8).norm(dim=0))


def test_input_norm_is_float32_whatever_comes_in(inputs: Any) -> None:
    norm = InputNorm(8)
    norm.add(inputs.bfloat16())
    assert norm.norm.dtype == torch.float32
    torch.testing.assert_close(norm.norm, inputs.bfloat16().float().reshape(-1, 8).norm(dim=0))


def test_hessian_is_the_mean_of_the_sequences(inputs: Any) -> None:
    hessian = Hessian(8)
    for batch in inputs.split(4):
        hessian.add(batch)
    by_hand = sum(2 * torch.outer(x, x) for x in inputs.reshape(-1, 8)) / len(inputs)
    torch.testing.assert_close(hessian.mean, by_hand)
    assert hessian.sequences == len(inputs)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Half precision goes into a float32 product in one call, as on a GPU; counts those calls."""
    calls = []

    def mm(a: Tensor, b: Tensor, *, out_dtype: Any) -> Any:
        assert a.dtype == b.dtype == torch.bfloat16
        assert out_dtype == torch.float32
        calls.append(a.shape)
        return (a.double() @ b.double()).float()

    def offered(device: torch.device, dtype: torch.dtype) -> Any:
        return dtype in product_module.HALVES

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(product_module, "sums_in_float32", offered)
    monkeypatch.setattr(hessian_module, "sums_in_float32", offered)
    return calls


def test_half_precision_is_multiplied_as_it_is_where_its_sums_are_float32(
    inputs: Any, tensor_cores: Any
) -> None:
    halves, outputs = inputs.bfloat16(), inputs[..., :4].bfloat16() * 0.37
    hessian, gradient = Hessian(8), GradientNorm((4, 8))
    hessian.add(halves[:4])
    hessian.add(halves[4:])
    gradient.add(halves, outputs)
    assert len(tensor_cores) == 2 * len(inputs)
    exact = halves.double().reshape(-1, 8)
    torch.testing.assert_close(hessian.mean.double(), 2 / 6 * exact.T @ exact, rtol=1e-5, atol=1e-6)
    each = outputs.double().transpose(1, 2) @ halves.double()  # [batch, out, in]
    torch.testing.assert_close(gradient.sum.double(), each.square().sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cpu_multiplies_in_float32(inputs: Any, dtype: torch.dtype) -> None:
    assert not product_module.sums_in_float32(torch.device("cpu"), dtype)
    a, b = inputs[0].to(dtype), inputs[1].T.to(dtype)
    found = product_module.product(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, a.float() @ b.float())


@pytest.mark.parametrize("order", ["l1", "l2"])
def test_gradients_of_one_backward_pass_equal_a_backward_pass_per_sequence(
    inputs: Any, order: Any
) -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    gradients = []
    for x in inputs:
        loss = (x @ weight.T).tanh().norm()
        gradients.append(torch.autograd.grad(loss, weight)[0])
    stacked = torch.stack(gradients)  # [batch, out, in]

    norm = GradientNorm((4, 8), order)
    for batch in inputs.split(3):
        y = (batch @ weight.T).detach().requires_grad_()
        loss = y.tanh().flatten(1).norm(dim=1).sum()
        norm.add(batch, torch.autograd.grad(loss, y)[0])

    total = stacked.abs().sum(0) if order == "l1" else stacked.square().sum(0).sqrt()
    mean = stacked.abs().mean(0) if order == "l1" else stacked.square().mean(0).sqrt()
    assert norm.sequences == 6
    torch.testing.assert_close(norm.total, total)
    torch.testing.assert_close(norm.mean, mean)


def test_statistics_hand_out_only_what_was_declared() -> None:
    statistics = Statistics({Need.INPUT_NORM: torch.ones(3)}, sequences=2)
    assert statistics.input_norm.tolist() == [1, 1, 1]
    with pytest.raises(LookupError, match="reads hessian but does not declare it"):
        _ = statistics.hessian


def test_statistics_name_what_is_not_finite() -> None:
    fine, broken = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert Statistics({Need.INPUT_NORM: fine}, 1).first_not_finite() is None
    found = Statistics({Need.INPUT_NORM: fine, Need.HESSIAN: broken}, 1).first_not_finite()
    assert found is Need.HESSIAN
