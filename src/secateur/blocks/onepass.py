"""A block that is pruned while it runs, so that every token goes through it once.

    for every group of matrices that read the same input, in the order in which they are reached:
        every batch runs up to that input, one after the other, is looked at, and pauses
        the group is pruned
    every batch runs to the end

Each matrix so sees what the pruned matrices below it give, where the papers' schedule shows the
matrices of a block what its dense ones give. The block's dense output is never known.

A batch runs in a greenlet of its own, for that is a way to pause inside of code that is not ours;
threads would have their own workers and heaps, and take half as long again. A batch that pauses
keeps what the block's code holds at that moment: at most its inputs, the residual and the widest
input of a matrix, or queries, keys and values, for all sequences.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from secateur.blocks.products import multiplies
from secateur.blocks.stream import Batch, Stream, Tick, silent
from secateur.checkpoint import Matrix
from secateur.errors import ModelError
from secateur.machine.memory import give_back, give_back_growth


@dataclass(frozen=True)
class GroupSteps:
    """What is done with every group of matrices as the batches reach it.

    Attributes:
        look: called as (number of a group, batch, what the group reads of it [..., in]) with every
            batch, in order.
        prune: called with the number of a group once all its batches were looked at; writes to
            the block's matrices.
    """

    look: Callable[[int, Batch, Tensor], None]
    prune: Callable[[int], None]


@torch.no_grad()
def groups_in_order(
    block: nn.Module, index: int, stream: Stream, matrices: Sequence[Matrix]
) -> list[list[Matrix]] | None:
    """The matrices that read the same tensor, in the order in which a block reaches their inputs.

    Found by running the first sequence through the block. None if the block cannot be pruned while
    it runs: it has fused experts, or does not multiply by each matrix exactly once.
    """
    if any(matrix.expert is not None for matrix in matrices):
        return None
    used: list[Matrix] = []
    groups: list[tuple[Tensor, list[Matrix]]] = []

    def see(matrix: Matrix, inputs: Tensor) -> None:
        used.append(matrix)
        for read, group in groups:
            if read is inputs:
                group.append(matrix)
                return
        groups.append((inputs, [matrix]))

    def see_product(matrix: Matrix) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if multiplies(matrix, args, output):
                see(matrix, args[0])

        return hook

    with ExitStack() as hooked:
        for matrix in matrices:
            handle = matrix.owner.register_forward_hook(see_product(matrix))
            hooked.callback(handle.remove)
        for _, hidden, call in stream.select(index, torch.tensor([0])):
            call(block, hidden)
    exactly_once = len(used) == len(matrices) and set(used) == set(matrices)
    return [group for _, group in groups] if exactly_once else None


def run_once(
    block: nn.Module,
    index: int,
    stream: Stream,
    groups: Sequence[Sequence[Matrix]],
    steps: GroupSteps,
    tick: Tick = silent,
) -> None:
    """Move the stream through a block whose groups are pruned as it reaches them.

    Args:
        block: its matrices are written to by `steps.prune`.
        index: which block of the model it is.
        stream: its inputs; afterwards the outputs of the pruned block.
        groups: as `groups_in_order` gives them.
        steps: what is done with every group.
        tick: told of progress.

    Raises:
        ModelError: a batch takes another way through the block than the first sequence did.
    """
    turn_of = {matrix: number for number, group in enumerate(groups) for matrix in group}
    runs = [_Run(stream, batch, block, index) for batch in stream.batches]

    def see(matrix: Matrix, inputs: Tensor) -> None:
        run = getcurrent()
        assert isinstance(run, _Run)
        turn = turn_of[matrix]
        if turn == len(run.read):
            run.pause(inputs)
        elif turn > len(run.read) or run.read[turn]() is not inputs:
            raise stray

    stray = ModelError(
        "a batch takes another way through the block than the first sequence",
        where=f"block {index}",
        hint="--schedule block",
    )
    turns = (len(groups) + 1) * len(runs)
    with _seen_before_use(turn_of, see), _ended(runs):
        for number in range(len(groups)):
            for turn, (run, batch) in enumerate(zip(runs, stream.batches, strict=True)):
                tick("run", number * len(runs) + turn, turns)
                if (inputs := run.go_on()) is None:
                    raise stray
                steps.look(number, batch, inputs)
                give_back_growth()  # what lies between the tensors that are held
            steps.prune(number)
            give_back()
        for turn, (run, batch) in enumerate(zip(runs, stream.batches, strict=True)):
            tick("run", len(groups) * len(runs) + turn, turns)
            batch.hidden = stream.activations.put(run.finish())


class _Run(greenlet):
    """One batch on its way through a block; it moves only while `go_on` or `finish` is called.

    Attributes:
        read: what was read where it has paused, for as long as the block's code holds it.
    """

    def __init__(self, stream: Stream, batch: Batch, block: nn.Module, index: int) -> None:
        super().__init__(lambda: batch.run(block, index, stream.activations.fetch(batch.hidden)))
        self.read: list[weakref.ref[Tensor]] = []

    def pause(self, inputs: Tensor) -> None:
        """Wait for the next turn; called in the run itself."""
        self.read.append(weakref.ref(inputs))
        assert self.parent is not None
        self.parent.switch(inputs)

    def go_on(self) -> Tensor | None:
        """Let the batch run up to its next pause; what is read there, or None at the end.

        What it raises is raised here.
        """
        inputs: Tensor = self.switch()
        return None if self.dead else inputs

    def finish(self) -> Tensor:
        """Let the batch run to the end: what the block makes of it."""
        output: Tensor = self.switch()
        return output


@contextmanager
def _ended(runs: Sequence[_Run]) -> Iterator[None]:
    try:
        yield
    finally:
        for run in runs:
            run.throw()  # ends it, wherever it is


@contextmanager
def _seen_before_use(
    matrices: Sequence[Matrix] | Mapping[Matrix, Any], see: Callable[[Matrix, Tensor], None]
) -> Iterator[None]:
    """Call `see` with what each matrix is about to read."""
    handles = []

    def hook(matrix: Matrix) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: see(matrix, args[0])

    try:
        for matrix in matrices:
            handles.append(matrix.owner.register_forward_pre_hook(hook(matrix)))
        yield
    finally:
        for handle in handles:
            handle.remove()
