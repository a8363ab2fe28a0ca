"""The structures whose removal a curve can be measured of: how they are chosen and left out.

A name of `MEASURED` is what stands before the dash in a pattern of structures, such as "blocks" in
blocks-2; a further kind of structure is a further entry.

    blocks               held-out windows pass them by
    experts, ffn, heads  every block is made narrower of the dense one while that is open, once for
                         each share: one pass over the files, two blocks in memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from secateur.blocks.batching import batch_size
from secateur.blocks.narrowed import narrower_weights
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel
from secateur.machine.accelerator import cast
from secateur.pruning.dense_passes import calibration_stream
from secateur.pruning.prepare import Prepared
from secateur.pruning.removal import by_leaving_out, removed_for_each
from secateur.pruning.widths import to_choose_with, widths_for_each, without_width
from secateur.record import LostWidth, Removed

Gone = Removed | LostWidth
"""What a model has lost."""


@dataclass(frozen=True)
class Unit:
    """What is done with structures of one kind.

    Attributes:
        method: that says which go, if none is named.
        choose: those that go, for each of several numbers of them, ascending. Raises a ModelError
            unless there is a model without.
        leave_out: the held-out windows behind the dense model, and behind it without what goes of
            each choice.
    """

    method: str
    choose: Callable[[Prepared, Sequence[int], Tick], Sequence[Gone]]
    leave_out: Callable[[Prepared, Sequence[Gone], Tick], Sequence[Stream]]


def _blocks_to_go(prepared: Prepared, counts: Sequence[int], tick: Tick) -> Sequence[Gone]:
    chosen = removed_for_each(prepared, counts, tick)
    for removed in chosen:
        removed.taken_from(prepared.source)
    return chosen


def _passing_by(prepared: Prepared, gone: Sequence[Gone], tick: Tick) -> Sequence[Stream]:
    choices = [one.removed for one in gone if isinstance(one, Removed)]
    windows = _windows(prepared, prepared.source)
    return by_leaving_out(prepared.source, windows, [(), *choices], tick)


def _width_to_go(prepared: Prepared, counts: Sequence[int], tick: Tick) -> Sequence[Gone]:
    stream = calibration_stream(to_choose_with(prepared), prepared.source)
    return widths_for_each(prepared, counts, stream, tick)


def _narrowing(prepared: Prepared, gone: Sequence[Gone], tick: Tick) -> Sequence[Stream]:
    source = prepared.source
    dense = _windows(prepared, source)
    shares = [_Share(prepared, one) for one in gone if isinstance(one, LostWidth)]
    for index in range(len(source.blocks)):
        tick("run", index, len(source.blocks))
        corrected = [share.corrected(index) for share in shares]
        with source.open_block(index) as whole:
            dense.advance(whole, index)
            for share, new in zip(shares, corrected, strict=True):
                share.advance(whole, index, new)
    return [dense, *(share.windows.behind(source) for share in shares)]


class _Share:
    """A model whose blocks have lost some of their width, each made while the dense one is open.

    Attributes:
        windows: held-out, where they are in it.

    Args:
        prepared: the run on the dense model.
        lost: what its blocks lose.
    """

    def __init__(self, prepared: Prepared, lost: LostWidth) -> None:
        narrow, self._missing = without_width(prepared, lost)
        self._narrow, self._lost = narrow.source, lost
        self._widths = lost.of_model(prepared.source)
        self.windows = _windows(prepared, narrow.source)
        corrects = prepared.plan.corrects
        self._calibration = calibration_stream(prepared, narrow.source) if corrects else None

    def corrected(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block that make up for what is gone, if the method corrects any."""
        if self._calibration is None:
            return {}
        block, prefix = self._narrow.blocks.modules[index], self._narrow.blocks.prefix(index)
        new = self._missing.corrected(block, index, self._calibration)
        return {
            matrix.parameter: cast(
                matrix.as_stored(weight), self._narrow.storage_dtype(prefix + matrix.parameter)
            )
            for matrix, weight in new.items()
        }

    def advance(self, whole: nn.Module, index: int, new: dict[str, Tensor]) -> None:
        """Move what goes through the model behind a block.

        Args:
            whole: the dense block, open.
            index: its number.
            new: tensors of the narrower block in place of the dense one's, by name.
        """
        held = narrower_weights(whole, self._widths, self._lost.kept[index])
        held |= {name: value.to(held[name]) for name, value in new.items()}
        empty = self._narrow.blocks.modules[index]
        for stream in (self.windows, self._calibration):
            if stream is not None:
                stream.advance(lambda *a, **k: functional_call(empty, held, a, k), index)


def _windows(prepared: Prepared, source: BlockModel) -> Stream:
    """The held-out windows before the first block of a model.

    Raises:
        ModelError: it predicts no tokens.
    """
    inputs = prepared.heldout[0].input_ids
    size = batch_size(prepared.recipe.batch_size, inputs.shape[1], source)
    stream = Stream(source, inputs, size, host=prepared.activations.host)
    stream.check_head(source)
    return stream


MEASURED = {
    "blocks": Unit("shortgpt", _blocks_to_go, _passing_by),
    "ffn": Unit("activation", _width_to_go, _narrowing),
    "heads": Unit("activation", _width_to_go, _narrowing),
    "experts": Unit("reap", _width_to_go, _narrowing),
}
"""Name -> what is done with such structures."""
