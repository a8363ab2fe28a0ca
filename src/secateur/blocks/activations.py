"""Where hidden states wait between two blocks, and how they come to the device that computes.

    device   they stay where they are computed
    host     they wait in main memory, and come to the accelerator a batch at a time: while one
             batch is at work the next is copied there and the last one's outputs are copied back

In main memory they are pinned where the accelerator copies from that beside its work (CUDA, XPU),
on a stream of its own. Numbers are copied, never computed anew: both give the same bits.

What belongs to all calibration sequences waits here: block inputs, the dense outputs that the
optimiser aims at, the gradients of block outputs, held-out windows. On the accelerator are then, of
these, a batch at work, the next one, and two of outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from secateur.machine.accelerator import copies_beside_work

_T = TypeVar("_T")


class Activations:
    """The place where the hidden states of some sequences wait.

    Args:
        device: where blocks compute.
        host: they wait in main memory; nothing on a CPU, which computes there.
    """

    def __init__(self, device: torch.device, *, host: bool = False) -> None:
        self.device = device
        self.host = host and device.type != "cpu"
        self._beside = torch.Stream(device=device) if self._pinned else None
        self._leaving: tuple[Tensor, torch.Event] | None = None  # on the way to main memory
        self._coming: list[torch.Event] | None = None  # copies that nobody waits for yet

    @property
    def _pinned(self) -> bool:
        return self.host and copies_beside_work(self.device)

    def put(self, value: Tensor) -> Tensor:
        """The same values where they wait; `value` itself if it lies there.

        In main memory they may be read by `fetch`, `stack`, and on the host after `settle`.
        """
        if not self.host:
            return value.to(self.device)
        if self._beside is None:
            return value.cpu()
        if value.device.type == "cpu":
            return value if value.is_pinned() else value.pin_memory()
        there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._let_go()
        self._beside.wait_stream(torch.accelerator.current_stream(self.device))
        with self._beside:
            there.copy_(value, non_blocking=True)
        # Held until it is copied: its memory may be taken by what the device does next.
        self._leaving = value, self._beside.record_event()
        return there

    def fetch(self, value: Tensor) -> Tensor:
        """Values on the device, of a tensor as `put` gives it or a part of one."""
        return self._brought(value.shape, [value]) if self.host else value

    def stack(self, values: Sequence[Tensor]) -> Tensor:
        """Several of one shape in one tensor on the device, [values, ...]."""
        if not self.host:
            return torch.stack(list(values))
        return self._brought((len(values), *values[0].shape), values)

    def ahead(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items, each made while the one before it is at work.

        Args:
            items: made by `fetch` and `stack`, lazily, with no more work on what these give.
        """
        if self._beside is None:
            yield from items
            return
        making, at_work = iter(items), torch.accelerator.current_stream(self.device)
        try:
            coming = self._begin(making)
            while coming is not None:
                item, arrivals = coming
                coming = self._begin(making)
                for arrival in arrivals:
                    at_work.wait_event(arrival)
                yield item
        finally:  # also if what was begun is never asked for: its memory is free from now on
            at_work.wait_stream(self._beside)
            self._leaving = None

    def bring(self, values: Iterable[Tensor]) -> Iterator[Tensor]:
        """Tensors on the device, one after the other, the next one on its way."""
        return self.ahead(map(self.fetch, values))

    def settle(self) -> None:
        """Wait until all that was put is there to be read by the host."""
        if self._beside is not None:
            self._beside.synchronize()
        self._let_go()

    def _begin(self, making: Iterator[_T]) -> tuple[_T, list[torch.Event]] | None:
        """The next item, and the copies that it waits for; None if there is none."""
        self._coming = []
        try:
            return next(making), self._coming
        except StopIteration:
            return None
        finally:
            self._coming = None

    def _brought(self, shape: Sequence[int], values: Sequence[Tensor]) -> Tensor:
        """A tensor on the device with the values of some in main memory, one after the other."""
        there = torch.empty(shape, dtype=values[0].dtype, device=self.device)
        rows = there.view(len(values), *values[0].shape)
        if self._beside is None:
            for row, value in zip(rows, values, strict=True):
                row.copy_(value)
            return there
        at_work = torch.accelerator.current_stream(self.device)
        self._beside.wait_stream(at_work)  # which may still use the memory for something else
        with self._beside:
            for row, value in zip(rows, values, strict=True):
                row.copy_(value, non_blocking=True)
        arrival = self._beside.record_event()
        if self._coming is None:
            at_work.wait_event(arrival)
        else:
            self._coming.append(arrival)
        return there

    def _let_go(self) -> None:
        """Give the memory back whose values have left the device."""
        if self._leaving is not None:
            torch.accelerator.current_stream(self.device).wait_event(self._leaving[1])
            self._leaving = None
