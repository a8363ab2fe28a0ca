"""Perplexity on fixed windows of text, block by block, and divergence from a dense model.

    perplexity = exp(mean over predicted tokens of -log p(token | the window so far))
    divergence = mean over predicted tokens of KL(p_dense || p)        in nats

Every window of T tokens predicts its last T - 1: the protocol of the GPTQ, SparseGPT and Wanda
scripts. The blocks are opened one at a time and all windows pass through each, so that memory is
one block plus the hidden states; the log-probabilities are made in float32, a few tokens at a time.

A pruning run can be measured while it lasts: its windows follow from block to block as each is
pruned, and nothing is read twice or written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import PreTrainedModel

from secateur.blocks.stream import Batch, Stream, Tick, silent
from secateur.checkpoint import BlockModel
from secateur.data import Protocol, TokenBatch
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.machine.waiting import each
from secateur.methods import Effect

MOST_NATS = 700.0
"""Nats per token, on average over a window, from which a likelihood is refused: exp of more is no
floating-point number."""
_IN_CACHE, _AT_ONCE = 2**20, 2**26
"""Scores that are made of logits together: on a processor few enough to stay in its cache, as a
window of a large vocabulary does not; on an accelerator 256 MB."""


class Evaluation(BaseModel):
    """What was measured, and on what."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    perplexity: float
    """exp of the mean negative log-likelihood per predicted token."""
    standard_error: float
    """Standard error of the perplexity, from the spread over windows (first order)."""
    negative_log_likelihood: float
    """Mean per predicted token, in nats."""
    predicted_tokens: int
    """windows * (length - 1)."""
    divergence: float | None
    """Mean KL divergence per predicted token from the dense model, in nats."""
    dense_perplexity: float | None = None
    """Perplexity of the dense model on the same windows."""
    protocol: Protocol
    """The text, how it was cut, and its hash."""
    dtype: str
    """Precision of the computation; log-probabilities are float32."""
    seconds: float
    """Wall time."""


def perplexity_of(
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
    windows = text.input_ids
    passed = PassedWindows(source, pass_through(source, windows, batch_size, tick, "run"))
    dense = None
    if against is not None:
        stream = pass_through(against, windows, batch_size, tick, "dense")
        dense = PassedWindows(against, stream)
    return measure_windows(passed, text, dense, began)


def pass_through(
    source: BlockModel,
    inputs: Tensor,
    batch_size: int,
    tick: Tick = silent,
    name: str = "run",
    *,
    host: bool = False,
) -> Stream:
    """The windows [windows, tokens], or images, after the last block; they wait on the `host`."""
    stream = Stream(source, inputs, batch_size, host=host)
    stream.check_head(source)
    for index in range(len(source.blocks)):
        tick(name, index, len(source.blocks))
        with source.open_block(index) as block:
            stream.advance(block, index)
    return stream


@dataclass(frozen=True)
class PassedWindows:
    """Windows that have been through all blocks of a model.

    Attributes:
        source: the model; only its surroundings are opened.
        stream: the windows after its last block.
    """

    source: BlockModel
    stream: Stream


def measure_windows(
    passed: PassedWindows, text: TokenBatch, dense: PassedWindows | None, began: float
) -> Evaluation:
    """Perplexity of windows that have been through all blocks, and divergence from the dense model.

    Args:
        passed: the windows after the model's last block.
        text: the windows.
        dense: the same windows after the dense model's last block.
        began: when the work began, by `time.perf_counter`.

    Raises:
        NumericalError: a window's likelihood is not finite.
    """
    losses, dense_losses, divergences = _by_window(passed, dense)
    mean = float(losses.mean())
    spread = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return Evaluation(
        perplexity=math.exp(mean),
        standard_error=math.exp(mean) * spread,
        negative_log_likelihood=mean,
        predicted_tokens=text.input_ids.shape[0] * (text.input_ids.shape[1] - 1),
        divergence=None if dense is None else float(divergences.mean()),
        dense_perplexity=None if dense is None else math.exp(float(dense_losses.mean())),
        protocol=text.protocol,
        dtype=str(passed.source.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - began,
    )


def effect_of(source: BlockModel, passed: Stream, dense: Stream) -> Effect:
    """What a change of the model does to what it predicts, on average over tokens.

    Args:
        source: the model; only its surroundings are opened.
        passed: the windows after the last block.
        dense: the same after the last block of the dense model.
    """
    losses, _, divergences = _by_window(PassedWindows(source, passed), PassedWindows(source, dense))
    return Effect(float(losses.mean()), float(divergences.mean()))


@torch.no_grad()
def _by_window(passed: PassedWindows, dense: PassedWindows | None) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss of every window, that of the dense model, and the mean divergence from it.

    Each float64 [windows]; the last two are zero without a dense model. Every process measures its
    own windows and knows all.
    """
    stream = passed.stream
    rows = torch.zeros(stream.sequences, 3, dtype=torch.float64)
    numbers = iter(stream.numbers.tolist())
    figures: dict[int, Tensor] = {}
    with ExitStack() as opened:
        model = opened.enter_context(passed.source.open_surroundings())
        dense_model = model
        if dense is not None and dense.source is not passed.source:
            dense_model = opened.enter_context(dense.source.open_surroundings())
        for number, batch in enumerate(each("likelihood of the windows", stream.batches)):
            for row in range(len(batch.inputs)):
                window = next(numbers)
                following = batch.inputs[row, 1:]  # [tokens - 1]
                logits = [_logits(stream, model, batch, row)]
                if dense is not None:
                    same = dense.stream.batches[number]
                    logits.append(_logits(dense.stream, dense_model, same, row))
                figures[window] = _figures(logits, following)
    for window, values in zip(figures, _on_cpu(figures.values()), strict=True):
        if not bool((values < MOST_NATS).all()):  # nor if it is NaN
            raise NumericalError(
                "the likelihood is not finite, or next to nothing",
                where=f"window {window} of the text",
            )
        rows[window, : len(values)] = values
    processes.add_up([rows])
    losses, dense_losses, divergences = rows.unbind(1)
    return losses, dense_losses, divergences


def _logits(stream: Stream, model: PreTrainedModel, batch: Batch, row: int) -> Tensor:
    """[tokens - 1, vocabulary] of a window: what is predicted of every token but its first."""
    return stream.logits(model, batch, slice(row, row + 1))[0, :-1]


def _on_cpu(figures: Iterable[Tensor]) -> Iterable[Tensor]:
    """The same, copied together: each copy by itself would wait for the accelerator."""
    values = list(figures)
    return torch.stack(values).cpu() if values else ()


def _figures(logits: Sequence[Tensor], following: Tensor) -> Tensor:
    """Means over the tokens of a window.

    Args:
        logits: of the model, and of the dense model if there is one, [tokens - 1, vocabulary].
        following: the tokens that are predicted, [tokens - 1].

    Returns:
        the loss of the model and of the dense model, and the divergence between them: float64
        [1] or [3].
    """
    most = _IN_CACHE if following.device.type == "cpu" else _AT_ONCE
    together = max(1, most // logits[0].shape[-1])
    parts: list[list[Tensor]] = []
    split = [torch.split(values, together) for values in (following, *logits)]
    for some, *here in zip(*split, strict=True):
        scores = [F.log_softmax(of_one.float(), dim=-1) for of_one in here]
        figures = [F.nll_loss(one, some, reduction="none") for one in scores]
        if len(scores) > 1:
            apart = F.kl_div(scores[0], scores[1], reduction="none", log_target=True)
            figures.append(apart.sum(dim=-1))
        parts.append(figures)
    means = [as_float64(torch.cat(figure)).mean() for figure in zip(*parts, strict=True)]
    return torch.stack(means)
