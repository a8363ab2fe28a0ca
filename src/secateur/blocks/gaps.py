"""What is done to a model that has lost blocks, by the dense model that still has them.

    prove      a block that was numbered anew computes what it did, to the bit, on some tokens
    advance    the dense model's stream goes through the block and on through the gap behind it, so
               that the block may learn to do what the gap did

The module of a block is that of the smaller model, with its weights; the calls are those that each
model makes of it, which may differ in the mask or the positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel
from secateur.checkpoint.fewer_blocks import KEEP_BLOCKS
from secateur.errors import ModelError
from secateur.machine import processes


class Gaps:
    """The blocks that are left of a model, and what lay between them.

    Args:
        dense: the model with all of its blocks.
        fewer: the model without some.
        kept: the number in `dense` of every block of `fewer`.
        tokens: int64 [1, tokens], to prove by that blocks are what they were.
    """

    def __init__(
        self, dense: BlockModel, fewer: BlockModel, kept: Sequence[int], tokens: Tensor
    ) -> None:
        self._dense, self._kept = dense, tuple(kept)
        for_each = tokens.expand(processes.count(), -1)  # every process proves for itself
        self._before = Stream(dense, for_each, 1).batches[0]
        self._now = Stream(fewer, for_each, 1).batches[0]

    @torch.no_grad()
    def prove(self, module: nn.Module, index: int) -> None:
        """Raise unless an open block does what it did under its number in the dense model.

        Args:
            module: of the smaller model, with the weights that it had.
            index: its number there.

        Raises:
            ModelError: its output is another.
        """
        old = self._kept[index]
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        dense = self._dense.blocks.modules[old]
        before = self._before.calls[old](
            lambda *args, **kwargs: functional_call(dense, weights, args, kwargs),
            self._before.hidden,
        )
        now = self._now.run(module, index)
        if not torch.equal(before, now):
            raise ModelError(
                f"block {old} is not what it was once it is block {index}",
                where=type(self._dense.model).__name__,
                hint=KEEP_BLOCKS,
            )

    def advance(self, stream: Stream, module: nn.Module, index: int, tick: Tick) -> None:
        """Move the dense model's stream behind a block, and through the gap that follows it.

        Args:
            stream: of the dense model, as its block before left it.
            module: the block, open, with the weights that it had.
            index: its number in the smaller model.
            tick: told of progress.
        """
        old = self._kept[index]
        self._through(stream, range(old) if index == 0 else (), tick)
        stream.advance(module, old, tick)
        last = index + 1 == len(self._kept)
        upto = len(self._dense.blocks) if last else self._kept[index + 1]
        self._through(stream, range(old + 1, upto), tick)

    def _through(self, stream: Stream, gap: Sequence[int], tick: Tick) -> None:
        for number in gap:
            with self._dense.open_block(number) as module:
                stream.advance(module, number, tick)
