"""Training of the weights themselves: what is used is written, zeros stay, a kill is no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
import tiny
from secateur.checkpoint import find_blocks
from secateur.errors import RecipeError, SecateurError
from secateur.progress import Quiet
from secateur.record.check import check_folder
from secateur.recovery import Recovery, run_recovery
from secateur.recovery.kept_weights import KeptWeights
from secateur.recovery.objective import language_model_loss
from secateur.recovery.targets import find_trained


def kept(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> KeptWeights:
    return KeptWeights(model, find_trained(model, None), lambda _: dtype)


def shake(weights: KeptWeights) -> None:
    """As if it had been trained: every factor has moved, those under zeros too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in weights.factors.values():
            factor.add_(0.1 * torch.randn(factor.shape, generator=generator))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_stored_computes_what_training_computed(family: str) -> None:
    model, tokens = tiny.make_sparse_model(family).requires_grad_(False), tiny.make_tokens(2, 16)
    before, weights = model(input_ids=tokens).logits, kept(model)
    assert torch.equal(weights(input_ids=tokens).logits, before)
    shake(weights)
    trained, stored = weights(input_ids=tokens).logits.detach(), weights.stored()
    assert torch.equal(model(input_ids=tokens).logits, before)  # the model itself is untouched
    for name, value in stored.items():
        parameter = model.get_parameter(name)
        if value.ndim > 1:
            assert bool((value[parameter == 0] == 0).all())
        parameter.copy_(value)
    assert torch.allclose(model(input_ids=tokens).logits, trained, atol=1e-5)
    assert not torch.allclose(trained, before, atol=1e-2)


def test_gradients_are_those_of_the_kept_weights_alone_and_rounding_has_none() -> None:
    model, tokens = tiny.make_sparse_model("llama").requires_grad_(False), tiny.make_tokens(2, 16)
    name = "model.layers.0.mlp.down_proj.weight"

    def gradient(dtype: torch.dtype) -> Tensor:
        weights = kept(model, dtype)
        assert weights.stored()[name].dtype == dtype
        language_model_loss(weights, tokens).backward()
        found = weights.factors[name].grad
        assert found is not None
        assert bool((found[model.get_parameter(name) == 0] == 0).all())
        return found

    exact, rounded = gradient(torch.float32), gradient(torch.bfloat16)
    plain = tiny.make_sparse_model("llama").requires_grad_(True)
    language_model_loss(plain, tokens).backward()
    by_hand = plain.get_parameter(name).grad
    assert by_hand is not None
    assert torch.allclose(exact, by_hand * (plain.get_parameter(name) != 0), atol=1e-7)
    assert not torch.equal(exact, rounded)  # that of the rounded weights
    assert torch.allclose(exact, rounded, rtol=0.1, atol=1e-3)


def test_what_is_trained_is_in_the_blocks() -> None:
    model = tiny.make_sparse_model("gpt2").requires_grad_(False)
    everything, small = find_trained(model, None), find_trained(model, ())
    blocks = find_blocks(model)
    inside = {
        blocks.prefix(index) + name
        for index, block in enumerate(blocks.modules)
        for name, _ in block.named_parameters()
    }
    assert set(everything) == inside
    assert {model.get_parameter(name).ndim for name in small} == {1}
    one = find_trained(model, ["transformer.h.0.mlp.c_fc"])
    assert set(one) - set(small) == {"transformer.h.0.mlp.c_fc.weight"}


@pytest.fixture
def settings(sparse_folder: Path, tmp_path: Path) -> Callable[..., Recovery]:
    """`settings(train="norms")`: a short recovery on sequences that count upwards."""
    starts = torch.randint(4, 60, (40, 1), generator=torch.Generator().manual_seed(0))
    text = tmp_path / "tokens.safetensors"
    save_file({"input_ids": starts + torch.arange(32)}, text)

    def build(**changes: Any) -> Recovery:
        return Recovery.build({
            "model": str(sparse_folder), "out": str(tmp_path / "out"), "text": str(text),
            "heldout": str(text), "windows": 8, "sequence_length": 32, "validation": 8,
            "batch_size": 4, "samples": 24, "steps": 12, "evaluate_every": 4, "train": "weights",
            "learning_rate": 1e-2, **changes,
        })  # fmt: skip

    return build


@pytest.mark.parametrize("train", ["weights", "norms"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recovery_keeps_every_zero_and_scores_what_it_says(
    train: str, dtype: str, settings: Callable[..., Recovery], sparse_folder: Path
) -> None:
    asked = settings(train=train, dtype=dtype, learning_rate=3e-2)
    recovery = run_recovery(asked).recovery
    assert recovery is not None
    assert recovery.recovered is not None
    assert recovery.pruned is not None
    assert recovery.recovered.perplexity < recovery.pruned.perplexity
    assert recovery.adapted is None  # there is nothing to merge
    before, after = tiny.weights_of(sparse_folder), tiny.weights_of(Path(asked.out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    kinds = {before[name].ndim for name in changed}
    assert kinds == ({1} if train == "norms" else {1, 2})
    assert not any("embed" in name or "lm_head" in name for name in changed)
    assert recovery.trained_parameters == sum(
        int((before[name] != 0).sum()) if before[name].ndim > 1 else before[name].numel()
        for name in before
        if "layers" in name and (train == "weights" or before[name].ndim == 1)
    )  # fmt: skip
    assert all(torch.equal(before[n] == 0, after[n] == 0) for n in before if before[n].ndim > 1)
    assert not check_folder(asked.out, "2:4").failing
    found = secateur.evaluate(asked.out, text=asked.text, sequence_length=32, windows=8)
    assert found.perplexity == pytest.approx(recovery.recovered.perplexity, rel=1e-6)
    assert AutoModelForCausalLM.from_pretrained(asked.out).config.dtype == torch.bfloat16


class _StopError(Exception):
    pass


class _Killed(Quiet):
    """Stands for a kill: raises in the middle of the seventh step."""

    left = 7

    def tick(self, phase: str, done: int, total: int) -> None:
        self.left -= phase.startswith("loss")
        if not self.left:
            raise _StopError


def test_a_killed_run_goes_on_to_the_same_bits(settings: Callable[..., Recovery]) -> None:
    whole, broken = settings(), settings(out=settings().out + "2")
    run_recovery(whole)
    with pytest.raises(_StopError):
        run_recovery(broken, _Killed())
    with pytest.raises(RecipeError, match="train"):
        run_recovery(settings(out=broken.out, resume=True, train="norms"))
    gone_on = run_recovery(settings(out=broken.out, resume=True)).recovery
    assert gone_on is not None
    assert gone_on.interruptions == 1
    here, there = tiny.weights_of(Path(whole.out)), tiny.weights_of(Path(broken.out))
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_adapters_beside_the_model_are_adapters(settings: Callable[..., Recovery]) -> None:
    with pytest.raises(SecateurError, match=r"result adapters goes with train adapters"):
        settings(result="adapters")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "weights", "rank": 4}, "rank and alpha go with train adapters"),
        ({"train": "norms", "alpha": 4.0}, "rank and alpha go with train adapters"),
        ({"train": "norms", "targets": "q_proj"}, "targets are of matrices, and train is norms"),
    ],
)
def test_what_would_be_ignored_is_refused(
    changes: dict[str, Any], said: str, settings: Callable[..., Recovery]
) -> None:
    with pytest.raises(SecateurError, match=said):
        settings(**changes)
    told = settings(train="weights").spelled_out()
    assert Recovery.build(told).spelled_out() == told  # defaults that are written down are not


def test_pruned_weights_are_not_counted_as_trained() -> None:
    model = tiny.make_sparse_model("llama").requires_grad_(False)
    trained = find_trained(model, None)
    wanted = sum(int((model.get_parameter(name) != 0).sum()) for name in trained)
    assert kept(model, torch.bfloat16).parameters() == wanted
    assert wanted < sum(model.get_parameter(name).numel() for name in trained)


def test_the_rate_follows_from_what_is_trained(settings: Callable[..., Recovery]) -> None:
    rates = {
        train: settings(train=train, learning_rate=None).spelled_out()["learning_rate"]
        for train in ("adapters", "weights", "norms")
    }
    assert rates == {"adapters": 3e-3, "weights": 6e-4, "norms": 1e-3}
