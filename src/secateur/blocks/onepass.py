"""A block that is pruned while it runs, so that every token goes through it once.

    for every group of matrices that read the same input, in the order in which they are reached:
        every batch runs up to that input, one after the other, and pauses
        the group is pruned, from what all batches bring
    every batch runs to the end

Each matrix so sees what the pruned matrices below it give, where the papers' schedule shows the
matrices of a block what its dense ones give. The block's dense output is never known.

A batch runs in a thread of its own, for that is the only way to pause inside of code that is not
ours. One moves at a time. Each that pauses keeps what the block's code holds at that moment: at
most its inputs, the residual and the widest input of a matrix, for all sequences.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.blocks.stream import Batch, Stream, Tick, silent
from secateur.checkpoint import Matrix
from secateur.errors import ModelError

Arrive = Callable[[Sequence[Matrix], Sequence[Tensor]], None]
"""(group, what it reads by batch, each [..., in]): prunes the group; called once for each group."""


@torch.no_grad()
def groups_in_order(
    block: nn.Module, index: int, stream: Stream, matrices: Sequence[Matrix]
) -> list[list[Matrix]] | None:
    """The matrices that read the same tensor, in the order in which a block reaches their inputs.

    Found by running the first sequence through the block. None if the block cannot be pruned while
    it runs: it has fused experts, or does not use each matrix exactly once.
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

    with _shown(matrices, see):
        hidden, call = stream.batches[0].select(index, torch.tensor([0]))
        call(block, hidden)
    exactly_once = len(used) == len(matrices) and set(used) == set(matrices)
    return [group for _, group in groups] if exactly_once else None


def run_once(
    block: nn.Module,
    index: int,
    stream: Stream,
    groups: Sequence[Sequence[Matrix]],
    arrive: Arrive,
    tick: Tick = silent,
) -> None:
    """Move the stream through a block whose groups are pruned as it reaches them.

    Args:
        block: its matrices are written to by `arrive`.
        index: which block of the model it is.
        stream: its inputs; afterwards the outputs of the pruned block.
        groups: as `groups_in_order` gives them.
        arrive: prunes a group.
        tick: told of progress.

    Raises:
        ModelError: a batch takes another way through the block than the first sequence did.
    """
    place = {matrix: number for number, group in enumerate(groups) for matrix in group}
    runs = [_Run(batch, block, index) for batch in stream.batches]

    def see(matrix: Matrix, inputs: Tensor) -> None:
        run = threading.current_thread()
        assert isinstance(run, _Run)
        if place[matrix] == len(run.read):
            run.pause(inputs)
        elif place[matrix] > len(run.read) or run.read[place[matrix]]() is not inputs:
            raise stray

    stray = ModelError(
        "a batch takes another way through the block than the first sequence",
        where=f"block {index}",
        hint="--schedule block",
    )
    steps = (len(groups) + 1) * len(runs)
    with _shown(place, see), _ended(runs):
        for number, group in enumerate(groups):
            for turn, run in enumerate(runs):
                tick("run", number * len(runs) + turn, steps)
                if not run.go_on():
                    raise stray
            arrive(group, [run.inputs for run in runs])
        for turn, (run, batch) in enumerate(zip(runs, stream.batches, strict=True)):
            tick("run", len(groups) * len(runs) + turn, steps)
            batch.hidden = run.finish()


class _Run(threading.Thread):
    """One batch on its way through a block; it moves only while `go_on` or `finish` is called.

    Attributes:
        inputs: what the matrix reads that it is paused at.
        read: the same of every pause so far, for as long as the block's code holds it.
    """

    def __init__(self, batch: Batch, block: nn.Module, index: int) -> None:
        super().__init__(daemon=True)
        self.inputs = batch.hidden
        self.read: list[weakref.ref[Tensor]] = []
        self._work = partial(batch.run, block, index)
        self._turn = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)
        self._output: Tensor | None = None
        self._fault: BaseException | None = None
        self._given_up = False

    def run(self) -> None:
        """What the thread does."""
        try:
            with torch.no_grad():  # which holds for one thread only
                self._output = self._work()
        except BaseException as fault:  # raised where it is waited for
            self._fault = fault
        self._waits.release()

    def pause(self, inputs: Tensor) -> None:
        """Wait for the next turn; called in the thread itself."""
        self.inputs = inputs
        self.read.append(weakref.ref(inputs))
        self._waits.release()
        self._turn.acquire()
        if self._given_up:
            raise _GivenUpError

    def go_on(self) -> bool:
        """Let the batch run up to its next pause; False if it runs to the end instead.

        What it raises is raised here.
        """
        del self.inputs
        if self.ident is None:
            self.start()
        else:
            self._turn.release()
        self._waits.acquire()
        if self._fault is not None:
            raise self._fault
        return self._output is None

    def finish(self) -> Tensor:
        """Let the batch run to the end: what the block makes of it."""
        self.go_on()
        assert self._output is not None
        output, self._output = self._output, None
        return output

    def give_up(self) -> None:
        """End the thread, wherever it is."""
        self._given_up = True
        self._turn.release()
        if self.ident is not None:
            self.join()


class _GivenUpError(BaseException):
    """Ends a run; no code of a block takes it for a fault of its own."""


@contextmanager
def _ended(runs: Sequence[_Run]) -> Iterator[None]:
    try:
        yield
    finally:
        for run in runs:
            run.give_up()


@contextmanager
def _shown(
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
