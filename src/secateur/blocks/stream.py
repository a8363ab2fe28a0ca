"""The calibration sequences on their way through the blocks, called as the model calls them.

Nothing here replays layer 0's arguments: each block gets the positional and keyword arguments
that the model itself handed to that very block (a sliding-window layer gets another mask than its
neighbour). They are recorded once, on a run of the whole model whose blocks are hollow: they pass
their input on (`hollow.py`). So no block has to be in memory for it.

The same trick gives the logits: a hollow run whose last block hands over the final hidden states,
so that the model's own code does whatever comes after the blocks.

    hidden [batch, tokens, width]   what goes from block to block; several streams of it may lie
                                    before the width, [batch, tokens, streams, width]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from secateur.blocks.activations import Activations
from secateur.blocks.call import Call, Interner, join, sequence_axis
from secateur.blocks.hollow import as_asked, hollow, record, values_returned
from secateur.blocks.models_fault import models_fault
from secateur.checkpoint import BlockModel
from secateur.checkpoint.in_memory import sees_ahead
from secateur.errors import ModelError
from secateur.machine import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tick = Callable[[str, int, int], None]
"""Called while a block is worked on, with the phase, the steps done, and the steps in all."""


def silent(phase: str, done: int, total: int) -> None:
    """The tick that nobody watches."""


@dataclass
class Batch:
    """Some sequences at one place between two blocks.

    Attributes:
        inputs: what the model reads: token ids int64 [batch, tokens], or images in the model's
            precision [batch, channels, height, width].
        hidden: [batch, tokens, width], where it waits; replaced as the batch moves up.
        calls: how the model calls each block with these sequences.
        single: the same for the first sequence alone; tells which arguments grow with the batch.
        labels: of images int64 [batch], if they have any.
    """

    inputs: Tensor
    hidden: Tensor
    calls: tuple[Call, ...]
    single: tuple[Call, ...]
    labels: Tensor | None = None

    def run(self, block: Callable[..., Any], index: int, hidden: Tensor | None = None) -> Tensor:
        """What block `index` makes of the hidden states: [batch, tokens, width].

        Args:
            block: it.
            index: which block of the model it is.
            hidden: the hidden states on the device; None if that is where they wait.
        """
        with models_fault(f"block {index}"):
            return self.calls[index](block, self.hidden if hidden is None else hidden)

    def call_for(self, index: int, rows: Tensor) -> Call:
        """The call of block `index` for some sequences.

        Args:
            index: which block.
            rows: positions within the batch, int64 [chosen].
        """
        rows = rows.to(self.inputs.device)
        of_all, of_one = self.calls[index], self.single[index]

        def choose(value: Any, one: Any) -> Any:
            axis = sequence_axis(value, one)
            if axis is None:
                return value
            step = one.shape[axis]  # argument rows per sequence, such as the number of heads
            parted = value.unflatten(axis, (len(self.hidden), step))
            return parted.index_select(axis, rows).flatten(axis, axis + 1)

        args = tree_map(choose, of_all.args, of_one.args)
        kwargs = tree_map(choose, of_all.kwargs, of_one.kwargs)
        return replace(of_all, args=args, kwargs=kwargs)


class Stream:
    """All calibration (or evaluation) sequences, in batches, and how the model calls its blocks.

    Args:
        source: the model; its surroundings are opened here, its blocks stay closed.
        inputs: int64 [sequences, tokens], or images [sequences, channels, height, width].
        batch_size: sequences per batch; the last batch may be smaller.
        labels: of images int64 [sequences], if they have any.
        host: hidden states wait in main memory (`activations.py`).

    Attributes:
        activations: where the hidden states wait.
        sequences: how many there are, in all processes.
        numbers: of the sequences of this process (`processes.py`), int64, as they lie in batches.

    Raises:
        ModelError: the model does not hand hidden states from block to block, or fails by itself.
    """

    def __init__(
        self,
        source: BlockModel,
        inputs: Tensor,
        batch_size: int,
        labels: Tensor | None = None,
        *,
        host: bool = False,
    ) -> None:
        self.blocks = source.blocks
        self.activations = Activations(source.device, host=host)
        self.sequences = len(inputs)
        self.numbers = processes.owned(len(inputs))
        self._classes = 1 if inputs.is_floating_point() else int(inputs.max()) + 1  # it must tell
        dtype = source.dtype if inputs.is_floating_point() else inputs.dtype
        keep = Interner()
        self.batches: list[Batch] = []
        with source.open_surroundings() as model, torch.no_grad():
            first = inputs[:1].to(source.device, dtype)
            self._returned = values_returned(model, source.blocks, first)
            for start in range(0, len(self.numbers), batch_size):
                rows = self.numbers[start : start + batch_size]
                read = inputs[rows].to(source.device, dtype)
                calls: list[Call] = []
                single: list[Call] = []
                hidden = record(model, source.blocks, read, self._returned, calls)
                record(model, source.blocks, read[:1], self._returned, single)
                batch_labels = None if labels is None else labels[rows].to(source.device)
                waiting = self.activations.put(hidden)
                self.batches.append(Batch(read, waiting, keep(calls), keep(single), batch_labels))
        self.activations.settle()

    @property
    def length(self) -> int | None:
        """How many tokens a sequence of text has; None for images."""
        inputs = self.batches[0].inputs
        return None if inputs.is_floating_point() else inputs.shape[1]

    @property
    def hidden(self) -> list[Tensor]:
        """Where the sequences are, by batch, each [batch, tokens, width], where they wait.

        The host may read them where that is main memory.
        """
        self.activations.settle()
        return [batch.hidden for batch in self.batches]

    @hidden.setter
    def hidden(self, states: list[Tensor]) -> None:
        for batch, hidden in zip(self.batches, states, strict=True):
            batch.hidden = self.activations.put(hidden)

    def at_hand(self, batches: int | None = None) -> Iterator[tuple[Batch, Tensor]]:
        """The first so many batches (None: all), each with its hidden states on the device."""
        some = self.batches[:batches]
        return zip(some, self.activations.bring(batch.hidden for batch in some), strict=True)

    def fork(self) -> Stream:
        """Another stream of the same sequences, from where they are now."""
        other = copy(self)
        other.batches = [replace(batch) for batch in self.batches]
        return other

    def behind(self, source: BlockModel) -> Stream:
        """The same sequences, where they are, of another model of the same shape."""
        other = self.fork()
        other.blocks = source.blocks
        return other

    def select(self, index: int, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Call]]:
        """Some sequences before block `index`, of whichever batches, at most as many as in a batch.

        Args:
            index: which block.
            places: among the sequences of this process, int64 [chosen], ascending; may be none.

        Yields:
            places, their hidden states [some, tokens, width], and the call for just those.
        """
        size = len(self.batches[0].hidden)
        for some in torch.split(places, size) if len(places) else ():
            numbers = torch.unique(some // size).tolist()
            parts = [some[some // size == number] for number in numbers]
            chosen = [
                self.batches[number].call_for(index, part % size)
                for number, part in zip(numbers, parts, strict=True)
            ]
            of_batch = self.batches[0].calls[index], self.batches[0].single[index]
            whole = join(chosen, [len(part) for part in parts], of_batch)
            together = zip(parts, chosen, strict=True) if whole is None else [(some, whole)]
            for part, call in together:
                yield part, self.rows([batch.hidden for batch in self.batches], part), call

    def rows(self, states: Sequence[Tensor], places: Tensor) -> Tensor:
        """Those of some sequences on the device, [places, tokens, width].

        Args:
            states: of the sequences of this process by batch, as they wait.
            places: among them, int64 [chosen], at least one.
        """
        size = len(states[0])
        return self.activations.stack(
            [states[place // size][place % size] for place in places.tolist()]
        )

    @torch.no_grad()
    def advance(self, block: Callable[..., Any], index: int, tick: Tick = silent) -> None:
        """Move every batch through block `index`."""
        for number, (batch, hidden) in enumerate(self.at_hand()):
            tick("run", number, len(self.batches))
            batch.hidden = self.activations.put(batch.run(block, index, hidden))

    @torch.no_grad()
    def check_head(self, source: BlockModel) -> None:
        """Prove, before any block has run, that the model makes logits of what its last one gives.

        Raises:
            ModelError: it does not, or fails at it; or its tokens see those behind them.
        """
        if sees_ahead(source.model):
            raise ModelError(
                "the model has no head that predicts tokens: it sees ahead",
                where=type(source.model).__name__,
                wanted="a causal language model",
            )
        with source.open_surroundings() as model:
            for batch in self.batches[:1]:
                self.logits(model, batch, slice(0, 1))

    def logits(
        self, model: PreTrainedModel, batch: Batch, rows: slice, final: Tensor | None = None
    ) -> Tensor:
        """What the model makes of the last block's output, by its own code.

        Args:
            model: with its surroundings open.
            batch: a batch that has been through all blocks.
            rows: which of its sequences.
            final: [rows, tokens, width], to use in place of the batch's hidden states.

        Returns:
            [rows, tokens, vocabulary], or of images [rows, classes], in the model's precision.

        Raises:
            ModelError: the model has no such head, or fails by itself.
        """
        last = len(self.blocks) - 1
        output = self.activations.fetch(batch.hidden[rows]) if final is None else final

        def visit(index: int, call: Call, hidden: Tensor) -> Tensor:
            return output if index == last else hidden

        name = type(model).__name__
        with hollow(self.blocks, visit, self._returned), models_fault(name):
            logits: Tensor | None = getattr(model(**as_asked(batch.inputs[rows])), "logits", None)
        images = batch.inputs.is_floating_point()
        expected = [*output.shape[: 1 if images else 2]]
        shape = [] if logits is None else [*logits.shape]
        if logits is None or shape[:-1] != expected or shape[-1] < self._classes:
            raise ModelError(
                f"the model has no head that {'tells classes' if images else 'predicts tokens'}"
                f" (logits: {shape or 'none'})",
                where=name,
                wanted=f"a head for {self._classes} of them at least",
                hint="magnitude, wanda or sparsegpt, and no held-out text",
            )
        return logits
