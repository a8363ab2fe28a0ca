"""The processes of one run: which of them this is, and the few things that they do together.

    torchrun --nproc-per-node N -m secateur prune ...

Process r of N, its rank, owns the sequences n with n % N == r. What is counted over sequences is
summed, so that every process knows the same and goes on with the same weights; process 0 reads
text, writes and speaks for all.

Without `start`, or in a single process, this process is alone: it owns every sequence, and nothing
here does anything. NCCL carries what is on an accelerator, gloo what is in main memory.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from secateur.errors import LostError, RecipeError
from secateur.machine.accelerator import collectives_here
from secateur.machine.rendezvous import group_of_torchrun, meet
from secateur.machine.waiting import doing

_T = TypeVar("_T")

PATIENCE = timedelta(hours=1)
"""How long the others wait for one that works alone, such as process 0 while it writes text."""
_TO_SPEAK = timedelta(seconds=10)
_before: Any = signal.SIG_DFL
"""What answered SIGTERM before this process joined the others."""


@dataclass(frozen=True)
class _Here:
    """The number of this process among those of its run; `local` counts within the host."""

    rank: int = 0
    count: int = 1
    local: int = 0
    store: Any = None


_here = _Here()


def start() -> None:
    """Join the processes that torchrun started; nothing if it did not, or this one has joined.

    Raises:
        LostError: the others cannot be found.
        RecipeError: what torchrun should have set is missing, or no number.
    """
    global _here, _before
    if _here.count > 1 or (group := group_of_torchrun()) is None:
        return
    _before = signal.signal(signal.SIGTERM, _stopped)  # how torchrun ends the others of one failed
    try:
        with _meeting():
            store = meet(group, PATIENCE)
            dist.init_process_group(
                collectives_here(),
                store=store, rank=group.rank, world_size=group.count, timeout=PATIENCE,
            )  # fmt: skip
    except BaseException:
        signal.signal(signal.SIGTERM, _before)
        raise
    _here = _Here(group.rank, group.count, group.local, PrefixStore("secateur", store))


def stop() -> None:
    """Part from the others at the end of all work, once they have come there too."""
    global _here
    if _here.count > 1:
        from_first(lambda: None)
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, _before)
    _here = _Here()


def tell_once(say: Callable[[], None]) -> None:
    """Say what there is to say of a failure, if no other process has failed before.

    The others come back when it is said: torchrun ends them all once one is gone.
    """
    if _here.count == 1:
        say()
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if _here.store.add("failed", 1) > 1:
            _here.store.wait(["said"], _TO_SPEAK)
            return
    except RuntimeError:  # the store is gone with the process that kept it: better twice than never
        pass
    say()
    with suppress(RuntimeError):
        _here.store.set("said", "")


def count() -> int:
    """How many processes there are."""
    return _here.count


def number() -> int:
    """The number of this process, from 0: its rank."""
    return _here.rank


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return _here.rank == 0


def owns(number: int) -> bool:
    """Whether sequence, or piece of work, `number` is this process's."""
    return number % _here.count == _here.rank


def owned(total: int) -> Tensor:
    """The numbers below `total` that this process owns, ascending: int64."""
    return torch.arange(total)[_here.rank :: _here.count]


def local() -> int:
    """The number of this process on its host: that of the accelerator it should take."""
    return _here.local


def own_file(path: Path) -> Path:
    """`path` for process 0, and a name beside it for each of the others."""
    return path if first() else path.with_stem(f"{path.stem}-rank{_here.rank}")


def alone(what: str) -> None:
    """Refuse work that is not split.

    Raises:
        RecipeError: there are several processes.
    """
    if _here.count > 1:
        raise RecipeError(
            f"{what} is not split over {_here.count} processes",
            wanted="prune, or evaluate --text",
            hint="the same without torchrun",
        )


def wait() -> None:
    """Go on once all have come here."""
    if _here.count > 1:
        with _meeting():
            dist.all_reduce(torch.zeros(1))  # by gloo, which barrier() may not be


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Put in place of each tensor its sum over the processes, to the same bits in all of them."""
    if _here.count > 1:
        _each(tensors, lambda whole: dist.all_reduce(whole, async_op=True))


@torch.no_grad()
def copy_from(owner: int, tensors: Sequence[Tensor]) -> None:
    """Put in place of each tensor that of the process that owns piece of work `owner`."""
    if _here.count > 1:
        _each(tensors, lambda whole: dist.broadcast(whole, owner % _here.count, async_op=True))


def totals(*numbers: float) -> list[float]:
    """The sum of each number over the processes."""
    if _here.count == 1:
        return list(numbers)
    summed = torch.tensor(numbers, dtype=torch.float64)
    add_up([summed])
    return [float(number) for number in summed]


def highest(number: int) -> int:
    """The highest of the processes' numbers."""
    if _here.count == 1:
        return number
    result = torch.tensor(number)
    with _meeting():
        dist.all_reduce(result, dist.ReduceOp.MAX)
    return int(result)


def from_first(make: Callable[[], _T]) -> _T:
    """Give all processes what `make` gives to process 0; the others wait and make nothing."""
    if _here.count == 1:
        return make()
    made: list[Any] = [make() if first() else None]
    with _meeting():
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    value: _T = made[0]
    return value


def gather(items: Sequence[_T]) -> list[_T]:
    """The items of all processes, those of the first one first."""
    if _here.count == 1:
        return list(items)
    by_rank: list[Any] = [None] * _here.count
    with _meeting():
        dist.all_gather_object(by_rank, list(items))
    return [item for gathered in by_rank for item in gathered]


def _each(tensors: Sequence[Tensor], begin: Callable[[Tensor], Any]) -> None:
    """Do something to each tensor together with the others, all at once, and wait for it."""
    whole = [tensor.contiguous() for tensor in tensors]
    with _meeting():
        for work in [begin(tensor) for tensor in whole]:
            work.wait()
    for tensor, changed in zip(tensors, whole, strict=True):
        if tensor.data_ptr() != changed.data_ptr():
            tensor.copy_(changed)


@contextmanager
def _meeting() -> Iterator[None]:
    """Whatever goes wrong between processes is that one of them is not there any more."""
    try:
        with doing("the processes wait for each other"):
            yield
    except RuntimeError as fault:
        brief = str(fault).strip().splitlines()[0].partition(". ")[0][:200]
        raise LostError(f"another process of this run is gone ({brief})", hint=_AGAIN) from fault


_AGAIN = "the same command: it goes on after the last block that was finished"


def _stopped(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise LostError("this run was ended, or another process of it is gone", hint=_AGAIN)
