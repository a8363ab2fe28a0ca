"""The structures whose removal a curve can be measured of: how they are chosen and left out.

A name of `MEASURED` is what stands before the dash in a pattern of structures, such as "blocks" in
blocks-2; a further kind of structure is a further entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel
from secateur.pruning.prepare import Prepared
from secateur.pruning.removal import by_leaving_out, choose_for_each

Gone = tuple[int, ...]
"""Numbers of the structures that go, counted over the whole model, in the order of their choice."""


@dataclass(frozen=True)
class Unit:
    """What is done with structures of one kind.

    Attributes:
        choose: those that go, for each of several numbers of them.
        check: raises a ModelError unless there is a model without some.
        leave_out: the stream behind the model without some, for each of several choices; () gives
            the dense model. The given stream stays before the first block.
    """

    choose: Callable[[Prepared, Sequence[int], Tick], Sequence[Gone]]
    check: Callable[[BlockModel, Gone], object]
    leave_out: Callable[[BlockModel, Stream, Sequence[Collection[int]], Tick], Sequence[Stream]]


def _blocks_to_go(prepared: Prepared, counts: Sequence[int], tick: Tick) -> Sequence[Gone]:
    return [gone for gone, _ in choose_for_each(prepared, counts, tick)]


MEASURED = {
    "blocks": Unit(
        choose=_blocks_to_go,
        check=lambda source, gone: source.without_blocks(gone),
        leave_out=by_leaving_out,
    ),
}
"""Name -> what is done with such structures."""
