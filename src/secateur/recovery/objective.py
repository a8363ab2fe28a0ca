"""What recovery makes small: the language-model loss, or the distance from the dense model.

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

Model = Callable[..., Any]
"""Computes what a model of transformers does, or is one."""
Objective = Callable[[Model, Tensor], Tensor]
"""Model and input ids [sequences, tokens] -> loss, a scalar with gradient."""


def language_model_loss(model: Model, input_ids: Tensor) -> Tensor:
    """Mean negative log-likelihood per predicted token, in nats."""
    loss: Tensor = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    return loss


def distillation(dense: PreTrainedModel, block_weight: float) -> Objective:
    """The distance from a dense model, as an objective.

    Args:
        dense: with the same vocabulary, on the same device.
        block_weight: of the distance between block outputs; 0 leaves them out.
    """
    hidden = block_weight > 0

    def loss(model: Model, input_ids: Tensor) -> Tensor:
        asked = {"input_ids": input_ids, "use_cache": False, "output_hidden_states": hidden}
        with torch.no_grad():
            wanted = dense(**asked)
        found = model(**asked)
        total = divergence(wanted.logits, found.logits)
        if hidden:
            apart = [
                _apart(there, here)
                for there, here in zip(
                    wanted.hidden_states[1:], found.hidden_states[1:], strict=True
                )
            ]
            total = total + block_weight * torch.stack(apart).mean()
        return total

    return loss


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean KL(wanted || found) per predicted token, in nats; logits [sequences, tokens, vocab]."""
    target = F.log_softmax(wanted[:, :-1].float(), dim=-1)
    scores = F.log_softmax(found[:, :-1].float(), dim=-1)
    return F.kl_div(scores, target, reduction="none", log_target=True).sum(dim=-1).mean()


def _apart(wanted: Tensor, found: Tensor) -> Tensor:
    """norm2(found - wanted)**2 / norm2(wanted)**2, a scalar."""
    return (found.float() - wanted.float()).square().sum() / wanted.float().square().sum()
