"""What weighs the errors of a block's output: against gradients that autograd takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name it is known by

import secateur
from secateur.blocks.error_factors import EVEN, error_factors
from secateur.blocks.full_gradients import UpAndDown
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel
from tiny import BLOCKS, make_model, make_tokens


def by_hand(tokens: torch.Tensor) -> list[torch.Tensor]:
    """Second moment of the loss gradient at every block's output, by one backward pass."""
    model = make_model("llama")
    outputs: list[torch.Tensor] = []

    def remember(module: Any, args: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True).retain_grad()
        outputs.append(output)

    for layer in model.model.layers:
        layer.register_forward_hook(remember)
    logits = model(tokens).logits
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    losses.view(len(tokens), -1).mean(1).sum().backward()
    gradients = [output.grad.flatten(0, 1) for output in outputs if output.grad is not None]
    return [gradient.T @ gradient for gradient in gradients]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_factor_is_that_of_the_gradients_second_moment(tmp_path: Any, batch_size: int) -> None:
    tokens = make_tokens(5, 16)
    source = ResidentModel(make_model("llama"), torch.device("cpu"), torch.float32)
    stream = Stream(source, tokens, batch_size)
    before = [hidden.clone() for hidden in stream.hidden]
    factors = error_factors(source, stream, UpAndDown(tmp_path))
    wanted = by_hand(tokens)
    assert len(factors) == len(wanted) == BLOCKS
    for factor, moment in zip(factors, wanted, strict=True):
        scaled = moment / moment.diagonal().mean()
        mixed = (1 - EVEN) * scaled + EVEN * torch.eye(len(moment))
        torch.testing.assert_close(factor @ factor.T, mixed, rtol=1e-3, atol=1e-4)
    for hidden, old in zip(stream.hidden, before, strict=True):
        assert torch.equal(hidden, old)


@pytest.mark.parametrize("method", ["wanda++", "alps-ro"])
def test_effort_best_runs_whole_and_says_what_it_did(method: str) -> None:
    options: dict[str, Any] = {"samples": 8, "sequence_length": 16, "seed": 1}
    calibration = make_tokens(8, 16)
    best = secateur.prune(
        make_model("llama"), method=method, calibration=calibration, effort="best", **options
    )
    fast = secateur.prune(
        make_model("llama"), method=method, calibration=calibration, effort="fast", **options
    )
    assert best.calibration is not None
    assert best.calibration.sequences == 4 * 8
    assert best.recipe["regional"]["weigh"] == "loss"
    assert fast.recipe["regional"]["weigh"] == "plain"
    for run in (best, fast):
        for block in run.blocks:
            assert block.judged is not None
            before, after = block.judged
            assert after <= before
