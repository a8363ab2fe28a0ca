"""Reads the next block and writes the last one while the machine computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from secateur.machine import processes
from secateur.machine.memory import free_bytes

READ_AHEAD_SHARE = 8
"""A block is read ahead if so many times its bytes are free in main memory: the block at work, what
is computed of it and what is being written need the rest."""


class ReadAhead:
    """Reads the next block while the last one is at work, for blocks taken in order, up or down.

    Args:
        read: reads the tensors of a block, by number.
        nbytes: what they take, by number.
        count: of the blocks.
    """

    def __init__(
        self, read: Callable[[int], dict[str, Tensor]], nbytes: Callable[[int], int], count: int
    ) -> None:
        self._read, self._nbytes, self._count = read, nbytes, count
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._coming: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._last = -1

    def take(self, index: int) -> dict[str, Tensor]:
        """The tensors of block `index`; its neighbour, on the other side from the last, is next.

        Raises:
            CheckpointError: the block cannot be read.
        """
        following = index - 1 if self._last == index + 1 else index + 1
        coming, self._coming, self._last = self._coming, None, index
        if coming is not None and coming[0] == index:
            tensors = coming[1].result()
        else:
            tensors = self._read(index)
        if 0 <= following < self._count:
            free = free_bytes(torch.device("cpu"))
            if self._nbytes(following) * READ_AHEAD_SHARE < free:
                self._coming = following, self._reader.submit(self._read, following)
        return tensors


class Behind:
    """A worker that does one thing after the other while the caller goes on.

    Use it as a context manager: it is left when all is done. What some work raises is raised by the
    next call, or at the end, unless another fault is on its way. With several processes all is done
    at once: they wait for each other in a fixed order.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "behind")
        self._at_work: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Begin some work, once what was begun before is done."""
        self.wait()
        if processes.count() > 1:
            work()
        else:
            self._at_work = self._worker.submit(work)

    def wait(self) -> None:
        """Wait until all is done."""
        at_work, self._at_work = self._at_work, None
        if at_work is not None:
            at_work.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except BaseException:
            if fault is None:
                raise
        finally:
            self._worker.shutdown()
