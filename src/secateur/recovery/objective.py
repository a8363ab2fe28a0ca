"""The objectives of recovery: the language-model loss, or the distance from the dense model.

lm       mean over predicted tokens of -log p(token | the sequence so far)
distill  mean over predicted tokens of KL(p_dense || p)
         + weight * mean over blocks of  norm2(h - h_dense)**2 / norm2(h_dense)**2

p, p_dense    next-token probabilities [sequences, tokens - 1, vocabulary]
h, h_dense    outputs of a block [sequences, tokens, width]; of the last, after the final norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import PreTrainedModel

from secateur.blocks.models_fault import models_fault

Forward = Callable[..., Any]
"""A model of transformers, or what computes as one: named inputs -> its output."""
Objective = Callable[[Forward, Tensor], Tensor]
"""Model and input ids [sequences, tokens] -> loss, a scalar with gradient."""


def language_model_loss(model: Forward, input_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood per predicted token, in nats."""
    loss: Tensor = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    return loss


def distillation(dense: PreTrainedModel, block_weight: float) -> Objective:
    """The distance from a dense model, as an objective.

    Args:
        dense: with the same vocabulary, on the same device.
        block_weight: of the distance between block outputs; 0 leaves them out.
    """
    with_blocks = block_weight > 0

    def loss(model: Forward, input_ids: Tensor) -> Tensor:
        asked = {"input_ids": input_ids, "use_cache": False, "output_hidden_states": with_blocks}
        with torch.no_grad(), models_fault(type(dense).__name__):
            teacher = dense(**asked)
        output = model(**asked)
        total = teacher_divergence(teacher.logits, output.logits)
        if with_blocks:
            distances = [
                _distance(dense_hidden, hidden)
                for dense_hidden, hidden in zip(
                    teacher.hidden_states[1:], output.hidden_states[1:], strict=True
                )
            ]
            total = total + block_weight * torch.stack(distances).mean()
        return total

    return loss


def teacher_divergence(dense: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(dense || logits) per predicted token, in nats; both [sequences, tokens, vocab]."""
    target = F.log_softmax(dense[:, :-1].float(), dim=-1)
    scores = F.log_softmax(logits[:, :-1].float(), dim=-1)
    return F.kl_div(scores, target, reduction="none", log_target=True).sum(dim=-1).mean()


def _distance(dense: Tensor, hidden: Tensor) -> Tensor:
    """norm2(hidden - dense)**2 / norm2(dense)**2, a scalar."""
    return (hidden.float() - dense.float()).square().sum() / dense.float().square().sum()
