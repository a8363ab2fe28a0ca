from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from secateur.checkpoint import ResidentModel, open_model
from secateur.data import TokenBatch, load_heldout
from secateur.errors import NumericalError
from secateur.evaluation import perplexity_of
from tiny import FAMILIES, make_model, make_tokens

CPU = torch.device("cpu")


def windows(sequences: int = 5, length: int = 24, seed: int = 3) -> TokenBatch:
    tokens = make_tokens(sequences, length, seed)
    return load_heldout(tokens, tokenizer=None, sequence_length=length, windows=None)


def by_the_model(model: Any, input_ids: Tensor) -> Any:
    """Mean negative log-likelihood, as transformers computes it from labels."""
    with torch.no_grad():
        return float(model(input_ids=input_ids, labels=input_ids).loss)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_perplexity_equals_the_models_own_loss(family: str, batch_size: int) -> None:
    model, text = make_model(family), windows()
    found = perplexity_of(ResidentModel(model, CPU, torch.float32), text, batch_size)
    assert found.negative_log_likelihood == pytest.approx(
        by_the_model(model, text.input_ids), rel=1e-5
    )
    assert found.perplexity == pytest.approx(math.exp(found.negative_log_likelihood))
    assert found.predicted_tokens == 5 * 23
    assert found.divergence is None


def test_a_streamed_model_gives_the_same_number(llama_folder: Path) -> None:
    text = windows()
    source = open_model(llama_folder, CPU, torch.float32)
    model = make_model("llama", dtype=torch.bfloat16).float()
    assert perplexity_of(source, text, 3).negative_log_likelihood == pytest.approx(
        by_the_model(model, text.input_ids), rel=1e-5
    )


def test_divergence_by_hand() -> None:
    sparse, dense, text = make_model("llama", seed=1), make_model("llama"), windows()
    found = perplexity_of(
        ResidentModel(sparse, CPU, torch.float32), text, 2, ResidentModel(dense, CPU, torch.float32)
    )
    with torch.no_grad():
        p = F.log_softmax(dense(input_ids=text.input_ids).logits[:, :-1], -1)
        q = F.log_softmax(sparse(input_ids=text.input_ids).logits[:, :-1], -1)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert found.divergence == pytest.approx(float(expected), rel=1e-4)
    assert found.divergence > 0.1


def test_a_model_does_not_diverge_from_itself() -> None:
    model = make_model("gpt2")
    source = ResidentModel(model, CPU, torch.float32)
    assert perplexity_of(source, windows(), 2, source).divergence == pytest.approx(0, abs=1e-7)


def test_the_standard_error_is_of_the_spread_over_windows() -> None:
    model, text = make_model("llama"), windows()
    found = perplexity_of(ResidentModel(model, CPU, torch.float32), text, 5)
    each = torch.tensor([by_the_model(model, row[None]) for row in text.input_ids])
    expected = found.perplexity * float(each.std()) / math.sqrt(5)
    assert found.standard_error == pytest.approx(expected, rel=1e-3)


def test_a_broken_model_is_named_not_averaged() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(NumericalError, match=r"likelihood is not finite, .* in window 0"):
        perplexity_of(ResidentModel(model, CPU, torch.float32), windows(), 2)
