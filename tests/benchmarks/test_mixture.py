"""The trained mixture of `benchmarks/mixture/`: what its router has learnt, and experts removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.blocks.routing import advance_and_see
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel

MIXTURE = Path(__file__).parents[2] / "benchmarks" / "mixture"
TEXT = (
    '"I do not know," said the old man, "whether he will come back before the evening." She looked'
    " at him for a moment without speaking, and then went slowly to the window. The rain had"
    " stopped; there was no one in the street but a boy with a lantern, who stood under the trees"
    " on the other side and seemed to wait for somebody. It was nearly nine o'clock. In the next"
    " room her mother was talking to the doctor in a low voice, and from time to time the fire"
    " threw a red light upon the wall. 'If he had any news,' she thought, 'he would have written"
    " to us long before this.' At last the door was opened, and her brother came in with a letter"
    " in his hand."
)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MIXTURE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return AutoTokenizer.from_pretrained(MIXTURE)(TEXT, return_tensors="pt").input_ids


@torch.no_grad()
def loss(model: Any, tokens: Tensor) -> float:
    return float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)


@contextmanager
def by_chance(model: Any) -> Iterator[None]:
    """Inside, two experts are drawn anew for every token, and weighed alike."""
    generator = torch.Generator().manual_seed(0)

    def draw(router: nn.Module, inputs: Any, output: Any) -> Any:
        logits, weights, chosen = output
        order = torch.rand(len(chosen), logits.shape[1], generator=generator).argsort(dim=1)
        return logits, torch.full_like(weights, 0.5), order[:, :2]

    with ExitStack() as hooks:
        for block in model.model.layers:
            hooks.callback(block.mlp.gate.register_forward_hook(draw).remove)
        yield


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in MIXTURE.iterdir()) < 12e6


def test_its_router_has_learnt_something(model: Any, tokens: Tensor) -> None:
    routed = loss(model, tokens)
    with by_chance(model):
        drawn = loss(model, tokens)
    assert routed < 4.5 < 8.3  # which is that of knowing nothing of 4,096 tokens
    assert drawn - routed > 0.2


def test_every_expert_has_work(model: Any, tokens: Tensor) -> None:
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, tokens, 1)
    for index in range(len(source.blocks)):
        with source.open_block(index) as block:
            routing = advance_and_see(stream, block, index)
        assert routing is not None
        assert routing.tokens.min() > 0
        assert routing.tokens.sum() == 2 * tokens.numel()


def test_it_loses_experts_on_disk(model: Any, tokens: Tensor, tmp_path: Path) -> None:
    halves = tokens[:, : tokens.shape[1] // 2 * 2].view(2, -1)
    save_file({"input_ids": halves.contiguous()}, tmp_path / "halves.safetensors")
    run = secateur.prune(
        MIXTURE, method="replacement", pattern="experts-25%",
        calibration=str(tmp_path / "halves.safetensors"),
        samples=2, sequence_length=halves.shape[1], out=tmp_path / "six",
    )  # fmt: skip
    (lost,) = run.lost
    assert (lost.of, lost.left) == (8, 6)
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "six", dtype=torch.float32).eval()
    assert smaller.config.num_experts == 6
    assert loss(smaller, tokens) - loss(model, tokens) < 1.0
    assert secateur.check(tmp_path / "six", source=MIXTURE).complaint is None
