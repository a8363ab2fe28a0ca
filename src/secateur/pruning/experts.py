"""Which experts of a block go, by the scores of a method.

    routing    one pass of all calibration tokens: what the router sends to every expert
    absence    a few calibration tokens (`to_search_with`): what the block gives without an expert,
               again after each that goes

Every block loses as many, of every group of experts that its router knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from secateur.blocks.absence import Absences, choose_by_absence
from secateur.blocks.fewer_experts import FewerExperts, find_experts
from secateur.blocks.routing import Router, advance_and_see, choose_experts
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel
from secateur.methods import Removal
from secateur.sparsity import Structures
from secateur.statistics import check_finite


class ExpertChoice:
    """The experts that go of one block after another.

    Attributes:
        groups: of which as many experts go from each.

    Args:
        source: the model.
        removal: how a method scores experts.
        stream: the calibration before the first block; each block that is asked about moves it on.
        count: how many experts go of every block (`how_many_go`).
        tick: told of progress.
    """

    def __init__(
        self, source: BlockModel, removal: Removal, stream: Stream, count: int, tick: Tick
    ) -> None:
        self._removal, self._stream, self._tick = removal, stream, tick
        self._router = Router.of(source.model.config, source.how_many("experts"))
        self._count = count
        self.groups = self._router.groups
        self._fewer = FewerExperts(source.model)

    def of(self, block: nn.Module, index: int) -> Sequence[int]:
        """The numbers of those that go of a block, in order; none if it has no experts.

        Args:
            block: open; the stream is before it, and behind it afterwards.
            index: which block of the model it is.

        Raises:
            NumericalError: a score is not finite.
        """
        if self._removal.of_routing is not None:
            routing = advance_and_see(self._stream, block, index, self._tick)
            if routing is None:
                return ()
            scores = self._removal.of_routing(routing)
            check_finite(scores, "the importance is", f"block {index}")
            return choose_experts(scores.tolist(), self._count, self.groups)
        gone = self._by_absence(block, index) if find_experts(block) is not None else ()
        self._stream.advance(block, index, self._tick)
        return gone

    @torch.no_grad()
    def _by_absence(self, block: nn.Module, index: int) -> Sequence[int]:
        score = self._removal.of_absence
        assert score is not None
        absences = Absences(block, index, self._stream, self._fewer)
        removed, _ = choose_by_absence(
            lambda keep: score(absences.without(keep)),
            self._router.experts,
            self._count,
            self.groups,
        )
        return removed


def how_many_go(source: BlockModel, structures: Structures, multiple: int) -> int:
    """How many structures a model loses, or each of its blocks.

    Args:
        source: the model.
        structures: what is removed.
        multiple: of which so many channels are left, where a share of them is removed.

    Raises:
        PatternError: it has not so many, or could not work with those that would be left.
        ModelError: such structures cannot be removed from the model.
    """
    total = source.how_many(structures.unit)
    if structures.unit == "experts":
        return Router.of(source.model.config, total).removed_of(structures)
    return structures.removed_of(total, multiple)
