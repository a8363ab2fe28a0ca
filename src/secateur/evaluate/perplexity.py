"""Perplexity on fixed windows of text, block by block, and divergence from a dense model.

    perplexity = exp(mean over predicted tokens of -log p(token | the window so far))
    divergence = mean over predicted tokens of KL(p_dense || p)        in nats

Every window of T tokens predicts its last T - 1: the protocol of the GPTQ, SparseGPT and Wanda
scripts. The blocks are opened one at a time and all windows pass through each, so that memory is
one block plus the hidden states; the log-probabilities are made in float32, one window at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import BlockModel
from secateur.data import Protocol, TokenBatch
from secateur.errors import NumericalError


class Evaluation(BaseModel):
    """What was measured, and on what."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    perplexity: float
    """exp of the mean negative log-likelihood per predicted token."""
    standard_error: float
    """Of the perplexity, from the spread over windows (first order)."""
    negative_log_likelihood: float
    """Mean per predicted token, in nats."""
    predicted_tokens: int
    """windows * (length - 1)."""
    divergence: float | None
    """Mean KL divergence per predicted token from the dense model, in nats."""
    dense_perplexity: float | None = None
    """Of the dense model on the same windows."""
    protocol: Protocol
    """The text, how it was cut, and its hash."""
    dtype: str
    """Precision of the computation; log-probabilities are float32."""
    seconds: float
    """Wall time."""


def evaluate(
    source: BlockModel,
    text: TokenBatch,
    batch_size: int,
    against: BlockModel | None = None,
    tick: Tick = silent,
) -> Evaluation:
    """Perplexity of a model on fixed windows, and its divergence from another.

    Args:
        source: the model.
        text: the windows.
        batch_size: windows that run through a block together.
        against: the dense model, with the same vocabulary.
        tick: told of every block.

    Raises:
        NumericalError: a window's likelihood is not finite.
    """
    began = time.perf_counter()
    streams = [_through_all_blocks(source, text.input_ids, batch_size, tick, "run")]
    if against is not None:
        streams.append(_through_all_blocks(against, text.input_ids, batch_size, tick, "dense"))
    losses, divergences = _measure(source, against, streams)
    mean = float(losses.mean())
    spread = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return Evaluation(
        perplexity=math.exp(mean),
        standard_error=math.exp(mean) * spread,
        negative_log_likelihood=mean,
        predicted_tokens=text.input_ids.shape[0] * (text.input_ids.shape[1] - 1),
        divergence=None if against is None else float(divergences.mean()),
        protocol=text.protocol,
        dtype=str(source.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - began,
    )


def _through_all_blocks(
    source: BlockModel, input_ids: Tensor, batch_size: int, tick: Tick, name: str
) -> Stream:
    """The windows after the last block."""
    stream = Stream(source, input_ids, batch_size)
    for index in range(len(source.blocks)):
        tick(name, index, len(source.blocks))
        with source.open_block(index) as block:
            stream.advance(block, index)
    return stream


@torch.no_grad()
def _measure(
    source: BlockModel, against: BlockModel | None, streams: list[Stream]
) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood and mean divergence of every window, float64 [windows]."""
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    dense_logits = _window_logits(against, streams[1]) if against is not None else None
    for input_ids, logits in _window_logits(source, streams[0]):
        scores = F.log_softmax(logits[:-1].float(), dim=-1)  # [tokens - 1, vocabulary]
        loss = F.nll_loss(scores, input_ids[1:], reduction="none").double().mean()
        if not bool(torch.isfinite(loss)):
            raise NumericalError(
                "the likelihood is not finite",
                where=f"window {len(losses)} of the text",
                hint="--dtype float32, or another copy of the model",
            )
        losses.append(loss.cpu())
        if dense_logits is not None:
            dense = F.log_softmax(next(dense_logits)[1][:-1].float(), dim=-1)
            per_token = F.kl_div(scores, dense, reduction="none", log_target=True).sum(dim=-1)
            divergences.append(per_token.double().mean().cpu())
    return torch.stack(losses), torch.stack(divergences) if divergences else torch.empty(0)


def _window_logits(source: BlockModel, stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids [tokens] and logits [tokens, vocabulary] of one window after the other."""
    with source.open_surroundings() as model:
        for batch in stream.batches:
            for row in range(len(batch.input_ids)):
                logits = stream.logits(model, batch, slice(row, row + 1))
                yield batch.input_ids[row], logits[0]
