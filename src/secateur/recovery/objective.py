"""The objectives of recovery: the language-model loss, or the distance from the dense model.

lm       mean over predicted tokens of -log p(token | the sequence so far)
distill  mean over predicted tokens of KL(p_dense || p)
         + weight * mean over blocks of  norm2(h - h_dense)**2 / norm2(h_dense)**2

p, p_dense    next-token probabilities [sequences, tokens - 1, vocabulary]
h, h_dense    outputs of a block [sequences, tokens, width]; of the last, after the final norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.blocks.models_fault import models_fault

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., Any]
"""A model of transformers, or what computes as one: named inputs -> its output."""
TOKENS_AT_ONCE = 64
"""Tokens whose probabilities of every word of the vocabulary are in memory together."""
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
    divergence: Tensor = _Divergence.apply(dense, logits)  # type: ignore[no-untyped-call]
    return divergence


class _Divergence(torch.autograd.Function):
    """Its gradient is found with its value, a few tokens at a time: the probabilities of all of
    them in float32, with what autograd keeps, are several times the logits."""

    @staticmethod
    def forward(context: Any, dense: Tensor, logits: Tensor) -> Tensor:
        """Both [sequences, tokens, vocabulary] -> the divergence, [] float32."""
        predicted = logits[:, :-1, 0].numel()
        gradient = torch.zeros_like(logits)
        total = torch.zeros((), device=logits.device)
        for row in range(len(logits)):
            for first in range(0, logits.shape[1] - 1, TOKENS_AT_ONCE):
                here = slice(first, min(first + TOKENS_AT_ONCE, logits.shape[1] - 1))
                wanted = F.log_softmax(dense[row, here].float(), dim=-1)
                found = F.log_softmax(logits[row, here].float(), dim=-1)
                p = wanted.exp()
                total += p.flatten() @ wanted.sub_(found).flatten()
                gradient[row, here] = found.exp_().sub_(p).div_(predicted)
        context.save_for_backward(gradient)
        return total / predicted

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[None, Tensor]:
        (gradient,) = context.saved_tensors
        return None, gradient * upstream


def _distance(dense: Tensor, hidden: Tensor) -> Tensor:
    """norm2(hidden - dense)**2 / norm2(dense)**2, a scalar."""
    return (hidden.float() - dense.float()).square().sum() / dense.float().square().sum()
