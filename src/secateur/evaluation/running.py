"""Held-out windows that follow a pruning run from block to block, so that it measures itself.

As each block is pruned it is in memory once already, with the weights as they are stored: running
the windows through it then saves writing and reading the model, and gives the same perplexity.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from secateur.blocks.stream import Stream
from secateur.checkpoint import BlockModel
from secateur.data import TokenBatch
from secateur.evaluation.perplexity import Evaluation, PassedWindows, measure_windows


class Following:
    """Held-out windows on their way through a model that is being pruned.

    Args:
        source: the model that is pruned.
        texts: the windows of every text.
        dense: the same windows after the last dense block; as many windows run through a block
            together as there, and they wait in the same place.

    Attributes:
        streams: the windows of every text where they are.
    """

    def __init__(
        self, source: BlockModel, texts: Sequence[TokenBatch], dense: Sequence[Stream]
    ) -> None:
        self._source, self._texts, self._dense = source, tuple(texts), tuple(dense)
        self.streams: list[Stream] = []
        self._seconds = [0.0] * len(self._texts)
        for number, (text, passed) in enumerate(zip(texts, dense, strict=True)):
            with self._timed(number):
                size = max((len(batch.inputs) for batch in passed.batches), default=1)
                host = passed.activations.host
                self.streams.append(Stream(source, text.input_ids, size, host=host))

    @property
    def seconds(self) -> float:
        """Seconds that all of it has taken so far."""
        return sum(self._seconds)

    def advance(self, block: nn.Module, index: int) -> None:
        """Run the windows through the pruned block `index`, while it is open."""
        for number, stream in enumerate(self.streams):
            with self._timed(number):
                stream.advance(block, index)

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Perplexity and divergence from the dense model on every text, once all have passed.

        Raises:
            NumericalError: a window's likelihood is not finite.
        """
        evaluations = []
        for number, (stream, text) in enumerate(zip(self.streams, self._texts, strict=True)):
            began = time.perf_counter() - self._seconds[number]
            passed, dense = (
                PassedWindows(self._source, moved) for moved in (stream, self._dense[number])
            )
            evaluations.append(measure_windows(passed, text, dense, began))
            self._seconds[number] = evaluations[-1].seconds
        return tuple(evaluations)

    @contextmanager
    def _timed(self, number: int) -> Iterator[None]:
        """Add what is done within to the time of a text."""
        began = time.perf_counter()
        yield
        self._seconds[number] += time.perf_counter() - began
