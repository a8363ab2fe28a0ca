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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import BlockModel
from secateur.data import Protocol, TokenBatch
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.machine.waiting import each
from secateur.methods import Effect

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


@dataclass(frozen=True)
class WindowLosses:
    """What models make of windows, on average over the predicted tokens of each, in nats.

    Attributes:
        losses: negative log-likelihood, float64 [models, windows].
        divergences: from the dense model, float64 [models, windows]; zero without one.
        dense: negative log-likelihood of the dense model, float64 [windows]; zero without one.
    """

    losses: Tensor
    divergences: Tensor
    dense: Tensor


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
    measured = by_window(passed.source, [passed.stream], dense)
    (losses,), (divergences,) = measured.losses, measured.divergences
    mean = float(losses.mean())
    return Evaluation(
        perplexity=math.exp(mean),
        standard_error=math.exp(mean) * standard_error(losses),
        negative_log_likelihood=mean,
        predicted_tokens=text.input_ids.shape[0] * (text.input_ids.shape[1] - 1),
        divergence=None if dense is None else float(divergences.mean()),
        dense_perplexity=None if dense is None else math.exp(float(measured.dense.mean())),
        protocol=text.protocol,
        dtype=str(passed.source.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - began,
    )


def standard_error(values: Tensor) -> float:
    """Of the mean of values by window, [windows]; 0 for one window, whose spread nobody knows."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def effects_of(source: BlockModel, passed: Sequence[Stream], dense: Stream) -> list[Effect]:
    """What each of some changes of a model does to what it predicts, on average over tokens.

    Args:
        source: the model; only its surroundings are opened.
        passed: the windows after the last block, a stream for every change.
        dense: the same after the last block of the dense model.

    Raises:
        NumericalError: a window's likelihood is not finite.
    """
    measured = by_window(source, passed, PassedWindows(source, dense))
    means = measured.losses.mean(1).tolist(), measured.divergences.mean(1).tolist()
    return [Effect(loss, divergence) for loss, divergence in zip(*means, strict=True)]


@torch.no_grad()
def by_window(
    source: BlockModel, streams: Sequence[Stream], dense: PassedWindows | None
) -> WindowLosses:
    """What models with one head make of every window, and how far they are from the dense model.

    What the dense model says of a window is made once for all of them: in memory are the
    predictions of two models for one window. Every process measures its own windows and knows all.

    Args:
        source: has the head; only its surroundings are opened.
        streams: the windows after the last block of each model.
        dense: the same after the last block of the dense model.

    Raises:
        NumericalError: a window's likelihood is not finite.
    """
    windows, models = streams[0], len(streams)
    rows = torch.zeros(windows.sequences, 1 + 2 * models, dtype=torch.float64)
    places = [
        (n, row) for n, batch in enumerate(windows.batches) for row in range(len(batch.inputs))
    ]
    figures: list[Tensor] = []
    with ExitStack() as opened:
        model = opened.enter_context(source.open_surroundings())
        dense_model = model
        if dense is not None and dense.source is not source:
            dense_model = opened.enter_context(dense.source.open_surroundings())
        for place in each("likelihood of the windows", places):
            following = windows.batches[place[0]].inputs[place[1], 1:]  # [tokens - 1]
            known = None
            if dense is not None:
                known = list(_log_probabilities(_logits(dense.stream, dense_model, place)))
            scored = [] if known is None else [_figures(known, None, following)]
            for stream in streams:
                parts = _log_probabilities(_logits(stream, model, place))
                scored.append(_figures(parts, known, following))
            figures.append(torch.cat(scored))
    measured = slice(1, None, 2) if dense is None else slice(None)  # without one, only losses
    for window, values in zip(windows.numbers.tolist(), _on_cpu(figures), strict=True):
        if not bool((values < MOST_NATS).all()):  # nor if it is NaN
            raise NumericalError(
                "the likelihood is not finite, or next to nothing",
                where=f"window {window} of the text",
            )
        rows[window, measured] = values.double()
    processes.add_up([rows])
    return WindowLosses(losses=rows[:, 1::2].T, divergences=rows[:, 2::2].T, dense=rows[:, 0])


def _logits(stream: Stream, model: PreTrainedModel, place: tuple[int, int]) -> Tensor:
    """[tokens - 1, vocabulary]: what is predicted of all tokens of a batch's row but the first."""
    number, row = place
    return stream.logits(model, stream.batches[number], slice(row, row + 1))[0, :-1]


def _on_cpu(figures: Sequence[Tensor]) -> Iterable[Tensor]:
    """The same, copied together: each copy by itself would wait for the accelerator."""
    return torch.stack(list(figures)).cpu() if figures else ()


def _log_probabilities(logits: Tensor) -> Iterator[Tensor]:
    """Of logits [tokens, vocabulary]: float32 [some tokens, vocabulary], one after the other."""
    most = _IN_CACHE if logits.device.type == "cpu" else _AT_ONCE
    for some in torch.split(logits, max(1, most // logits.shape[-1])):
        yield F.log_softmax(some.float(), dim=-1)


def _figures(parts: Iterable[Tensor], dense: Sequence[Tensor] | None, following: Tensor) -> Tensor:
    """Means over the tokens of a window: float64, the loss and, beside a dense model, divergence.

    Args:
        parts: log-probabilities of the model, [some tokens, vocabulary] each.
        dense: those of the dense model.
        following: the tokens that are predicted, [tokens].
    """
    losses, divergences, at = [], [], 0
    for number, scores in enumerate(parts):
        some = following[at : at + len(scores)]
        at += len(scores)
        losses.append(F.nll_loss(scores, some, reduction="none"))
        if dense is not None:
            apart = F.kl_div(scores, dense[number], reduction="none", log_target=True)
            divergences.append(apart.sum(dim=-1))
    per_token = [losses] if dense is None else [losses, divergences]
    return torch.stack([as_float64(torch.cat(figure)).mean() for figure in per_token])
