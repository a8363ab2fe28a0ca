"""Held-out windows that follow a pruning run from block to block, so that it measures itself.

As each block is pruned it is in memory once already, with the weights as they are stored: running
the windows through it then saves writing and reading the model, and gives the same perplexity.
"""

from __future__ import annotations

import time

from torch import nn

from secateur.blocks.stream import Stream
from secateur.checkpoint import BlockModel
from secateur.data import TokenBatch
from secateur.evaluate.perplexity import Evaluation, measure


class Following:
    """The windows on their way.

    Args:
        source: the model that is pruned.
        text: the windows.
        batch_size: windows that run through a block together.
        dense: the same windows after the last dense block.

    Attributes:
        stream: the windows where they are.
        seconds: that this has taken so far.
    """

    def __init__(
        self, source: BlockModel, text: TokenBatch, batch_size: int, dense: Stream
    ) -> None:
        began = time.perf_counter()
        self._source, self._text, self._dense = source, text, dense
        self.stream = Stream(source, text.input_ids, batch_size)
        self.seconds = time.perf_counter() - began

    def advance(self, block: nn.Module, index: int) -> None:
        """Run the windows through the pruned block `index`, while it is open."""
        began = time.perf_counter()
        self.stream.advance(block, index)
        self.seconds += time.perf_counter() - began

    def evaluation(self) -> Evaluation:
        """Perplexity and divergence from the dense model, once all blocks have passed.

        Raises:
            NumericalError: a window's likelihood is not finite.
        """
        began = time.perf_counter() - self.seconds
        found = measure(self._source, self.stream, self._text, (self._source, self._dense), began)
        self.seconds = found.seconds
        return found
