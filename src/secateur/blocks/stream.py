"""The calibration sequences on their way through the blocks, called as the model calls them.

Nothing here replays layer 0's arguments: each block gets the positional and keyword arguments
that the model itself handed to that very block (a sliding-window layer gets another mask than its
neighbour). They are recorded once, on a run of the whole model whose blocks are hollow: they pass
their input on. So no block has to be in memory for it.

The same trick gives the logits: a hollow run whose last block hands over the final hidden states,
so that the model's own code does whatever comes after the blocks.

    hidden [batch, tokens, width]   what goes from block to block
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from secateur.blocks.call import Call, Interner, join
from secateur.checkpoint import BlockModel, Blocks
from secateur.errors import ModelError
from secateur.machine import processes

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
        hidden: [batch, tokens, width]; replaced as the batch moves up.
        calls: how the model calls each block with these sequences.
        single: the same for the first sequence alone; tells which arguments grow with the batch.
        labels: of images int64 [batch], if they have any.
    """

    inputs: Tensor
    hidden: Tensor
    calls: tuple[Call, ...]
    single: tuple[Call, ...]
    labels: Tensor | None = None

    def run(self, block: Callable[..., Any], index: int) -> Tensor:
        """What block `index` makes of the hidden states: [batch, tokens, width]."""
        return self.calls[index](block, self.hidden)

    def select(self, index: int, rows: Tensor) -> tuple[Tensor, Call]:
        """The hidden states of some sequences, and the call of block `index` for just those.

        Args:
            index: which block.
            rows: positions within the batch, int64 [chosen].
        """
        rows = rows.to(self.hidden.device)
        of_all, of_one = self.calls[index], self.single[index]

        def choose(value: Any, one: Any) -> Any:
            if not isinstance(value, Tensor) or value.shape == one.shape:
                return value
            step = one.shape[0]  # argument rows per sequence, such as the number of heads
            chosen = value.reshape(-1, step, *value.shape[1:])[rows]
            return chosen.flatten(0, 1)

        args = tree_map(choose, of_all.args, of_one.args)
        kwargs = tree_map(choose, of_all.kwargs, of_one.kwargs)
        return self.hidden[rows], replace(of_all, args=args, kwargs=kwargs)


class Stream:
    """All calibration (or evaluation) sequences, in batches, and how the model calls its blocks.

    Args:
        source: the model; its surroundings are opened here, its blocks stay closed.
        inputs: int64 [sequences, tokens], or images [sequences, channels, height, width].
        batch_size: sequences per batch; the last batch may be smaller.
        labels: of images int64 [sequences], if they have any.

    Attributes:
        sequences: how many there are, in all processes.
        numbers: of the sequences of this process (`processes.py`), int64, as they lie in batches.

    Raises:
        ModelError: the model does not hand hidden states from block to block.
    """

    def __init__(
        self, source: BlockModel, inputs: Tensor, batch_size: int, labels: Tensor | None = None
    ) -> None:
        self.blocks = source.blocks
        self.sequences = len(inputs)
        self.numbers = processes.owned(len(inputs))
        dtype = source.dtype if inputs.is_floating_point() else inputs.dtype
        keep = Interner()
        self.batches: list[Batch] = []
        with source.open_surroundings() as model, torch.no_grad():
            first = inputs[:1].to(source.device, dtype)
            self._as_tuple = _returns_tuple(model, source.blocks, first)
            for start in range(0, len(self.numbers), batch_size):
                rows = self.numbers[start : start + batch_size]
                read = inputs[rows].to(source.device, dtype)
                hidden, calls = _record(model, source.blocks, read, self._as_tuple)
                _, single = _record(model, source.blocks, read[:1], self._as_tuple)
                batch_labels = None if labels is None else labels[rows].to(source.device)
                self.batches.append(Batch(read, hidden, keep(calls), keep(single), batch_labels))

    @property
    def hidden(self) -> list[Tensor]:
        """Where the sequences are, by batch, each [batch, tokens, width]."""
        return [batch.hidden for batch in self.batches]

    @hidden.setter
    def hidden(self, states: list[Tensor]) -> None:
        for batch, hidden in zip(self.batches, states, strict=True):
            batch.hidden = hidden

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
                self.batches[number].select(index, part % size)
                for number, part in zip(numbers, parts, strict=True)
            ]
            whole = join([call for _, call in chosen], [len(part) for part in parts])
            if whole is not None:
                yield some, torch.cat([hidden for hidden, _ in chosen]), whole
                continue
            for part, (hidden, call) in zip(parts, chosen, strict=True):
                yield part, hidden, call

    @torch.no_grad()
    def advance(self, block: nn.Module, index: int, tick: Tick = silent) -> None:
        """Move every batch through block `index`."""
        for number, batch in enumerate(self.batches):
            tick("run", number, len(self.batches))
            batch.hidden = batch.run(block, index)

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
        """
        last = len(self.blocks) - 1
        output = batch.hidden[rows] if final is None else final

        def visit(index: int, call: Call, hidden: Tensor) -> Tensor:
            return output if index == last else hidden

        with _hollow(self.blocks, visit, self._as_tuple):
            logits: Tensor = model(**_as_asked(batch.inputs[rows])).logits
        return logits


def _as_asked(inputs: Tensor) -> dict[str, Any]:
    """The arguments that a model wants: token ids are whole numbers, images are not."""
    if inputs.is_floating_point():
        return {"pixel_values": inputs}
    return {"input_ids": inputs, "use_cache": False}


def _returns_tuple(model: PreTrainedModel, blocks: Blocks, inputs: Tensor) -> bool:
    """Whether the model expects its blocks to return a tuple; found by trying both.

    A model that expects a tuple takes element 0 of what it gets, which of a plain tensor is one
    sequence: `_record` notices.
    """
    faults = (ModelError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
    try:
        _record(model, blocks, inputs, as_tuple=False)
    except faults as first:
        try:
            _record(model, blocks, inputs, as_tuple=True)
        except faults:
            if isinstance(first, ModelError | RuntimeError):  # RuntimeError: no memory, say
                raise first from None
            raise ModelError(
                f"the blocks cannot be run one by one ({first})",
                where=type(model).__name__,
                wanted="a model that hands hidden states from block to block, in order",
            ) from first
        return True
    return False


def _record(
    model: PreTrainedModel, blocks: Blocks, inputs: Tensor, as_tuple: bool
) -> tuple[Tensor, tuple[Call, ...]]:
    """One hollow run up to the output head: the first block's input, the call of every block."""
    passed_on: list[Tensor] = []
    calls: list[Call] = []

    def visit(index: int, call: Call, hidden: Tensor) -> Tensor:
        if index != len(calls) or (passed_on and hidden is not passed_on[-1]):
            raise ModelError(
                f"block {index} does not get what the block before it returned",
                where=type(model).__name__,
                wanted="a model that hands hidden states from block to block, in order",
            )
        calls.append(call)
        passed_on.append(hidden.view_as(hidden))  # a new object, so that identity proves the path
        return passed_on[-1]

    with _hollow(blocks, visit, as_tuple):
        final = model.base_model(**_as_asked(inputs)).last_hidden_state
    # An image is as many tokens as its embedding makes of it.
    expected = passed_on[0].shape[:2] if inputs.is_floating_point() and passed_on else inputs.shape
    if len(calls) != len(blocks) or final.shape[:2] != expected:
        raise ModelError(
            f"{len(calls)} of {len(blocks)} blocks are called, and the result has shape"
            f" {list(final.shape)}",
            where=type(model).__name__,
            wanted=f"every block, and [{', '.join(map(str, expected))}, width]",
        )
    return passed_on[0], tuple(calls)


@contextmanager
def _hollow(
    blocks: Blocks, visit: Callable[[int, Call, Tensor], Tensor], as_tuple: bool
) -> Iterator[None]:
    """Let every block return `visit(index, call, hidden)` instead of computing."""

    def hollow_forward(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                hidden, call = args[0], Call(args[1:], kwargs, None)
            else:
                name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
                hidden = kwargs.pop(name)
                call = Call((), kwargs, name)
            output = visit(index, call, hidden)
            return (output,) if as_tuple else output

        return forward

    for index, block in enumerate(blocks.modules):
        block.forward = hollow_forward(index)
    try:
        yield
    finally:
        for block in blocks.modules:
            del block.forward
