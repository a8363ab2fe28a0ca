"""What is done to a model whose blocks are narrower, by the dense model that has all of the width.

    prove      a narrower block computes what the dense one does once its missing channels or heads
               are silenced, on some tokens: zeros stand where the matrix behind them reads them
    advance    the dense model's stream goes through the dense block, so that the narrower one may
               learn to do what that does

Of layouts that are possible the proof chooses the one that is meant. A missing expert cannot be
silenced from outside, for the router would still choose it: in its place the dense block's own
tensors are put into an empty block with fewer experts (`fewer_experts.py`), which is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.blocks.fewer_experts import FewerExperts, narrowed
from secateur.blocks.stream import Batch, Stream, Tick
from secateur.checkpoint import BlockModel
from secateur.checkpoint.narrower import KEEP_WIDTHS, Kept, Widths
from secateur.errors import ModelError
from secateur.machine import processes

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference of outputs that rounding explains, by precision; 0.05 for shorter ones."""


class Narrowed:
    """The blocks of a model that have lost some of their width.

    Args:
        dense: the model with all of its width.
        narrow: the model without some.
        widths: how the structures lie.
        kept: those that stay, by block.
        tokens: int64 [1, tokens], to prove by that blocks are what they should be.
    """

    def __init__(
        self, dense: BlockModel, narrow: BlockModel, widths: Widths, kept: Kept, tokens: Tensor
    ) -> None:
        self._dense, self._widths, self._kept = dense, widths, kept
        for_each = tokens.expand(processes.count(), -1)  # every process proves for itself
        self._before = Stream(dense, for_each, 1).batches[0]
        self._now = Stream(narrow, for_each, 1).batches[0]
        self._fewer = FewerExperts(dense.model)

    def prove(self, module: nn.Module, index: int) -> None:
        """Raise unless an open block does what the dense one does without what is missing.

        Args:
            module: of the narrower model, with the weights that it had.
            index: its number.

        Raises:
            ModelError: its output is another.
        """
        if not self.holds(module, index):
            raise ModelError(
                f"block {index} is not what it was without some of its {self._widths.unit}",
                where=type(self._dense.model).__name__,
                hint=KEEP_WIDTHS,
            )

    @torch.no_grad()
    def holds(self, module: nn.Module, index: int) -> bool:
        """Whether an open block does so."""
        with self._dense.open_block(index) as whole:
            silent, stay = self._silent(whole, self._kept[index]), self._kept[index]
            if self._widths.unit == "experts" and stay:
                fewer = narrowed(whole, self._fewer.make(index)(len(stay)), stay)
                before = self._before.run(fewer, index)
            elif silent:
                before = _run(self._before, whole, index, silent)
            else:
                return True
        now = self._now.run(module, index)
        error = (before.double() - now.double()).norm() / before.double().norm()
        return float(error) <= TOLERANCE.get(now.dtype, 0.05)

    def advance(self, stream: Stream, module: nn.Module, index: int, tick: Tick) -> None:
        """Move the dense model's stream behind a block.

        Args:
            stream: of the dense model, as its block before left it.
            module: the narrower block; it is not run.
            index: its number.
            tick: told of progress.
        """
        with self._dense.open_block(index) as whole:
            stream.advance(whole, index, tick)

    def _silent(self, block: nn.Module, kept: Sequence[int]) -> dict[str, Tensor]:
        """The parameters of a dense block that read its structures, zero for those that are gone.

        They are none of experts, which nothing reads by itself.
        """
        held = block.state_dict()
        silent = {}
        for cut in self._widths.within(block):
            if cut.reads:
                stay = cut.places(kept, self._widths.total).to(held[cut.parameter].device)
                gone = torch.ones(held[cut.parameter].shape[cut.dim], dtype=torch.bool)
                gone[stay.cpu()] = False
                places = gone.nonzero().flatten().to(stay.device)
                silent[cut.parameter] = held[cut.parameter].index_fill(cut.dim, places, 0)
        return silent


def _run(batch: Batch, block: nn.Module, index: int, weights: dict[str, Tensor]) -> Tensor:
    """What a block makes of a batch with some other weights."""
    return batch.calls[index](
        lambda *args, **kwargs: functional_call(block, weights, args, kwargs), batch.hidden
    )


def layout_of(source: BlockModel, unit: str, kept: int, tokens: Tensor) -> Widths:
    """How the structures of a model lie in its parameters: the layout that its first block proves.

    Args:
        source: the model.
        unit: "ffn", "heads" or "experts".
        kept: how many are to stay in every block.
        tokens: int64 [1, tokens], to prove by.

    Raises:
        ModelError: the model's structures cannot be removed, or no layout holds.
    """
    layouts = source.widths(unit)
    for widths in layouts:
        stay = _spread(kept, widths.total)
        everywhere = [stay if widths.within(one) else [] for one in source.blocks.modules]
        first = next(number for number, some in enumerate(everywhere) if some)
        narrow = source.narrowed(widths, everywhere)
        narrowed = Narrowed(source, narrow, widths, everywhere, tokens)
        with suppress(ModelError), narrow.open_block(first) as module:
            if narrowed.holds(module, first):
                return widths
    raise ModelError(
        f"a block without some of its {unit} is not what it was",
        where=type(source.model).__name__,
        hint=KEEP_WIDTHS,
    )


def _spread(kept: int, total: int) -> list[int]:
    """So many of the numbers below `total`, at distances that differ, ascending."""
    generator = torch.Generator().manual_seed(0)
    return sorted(torch.randperm(total, generator=generator)[:kept].tolist())
