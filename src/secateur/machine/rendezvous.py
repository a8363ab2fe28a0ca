"""How the processes that torchrun started find each other, in a time that a person will wait.

    TORCHELASTIC_RUN_ID      only torchrun sets it: without it this process is alone
    RANK, WORLD_SIZE         which process this is, of how many
    MASTER_ADDR, MASTER_PORT where the store is that all of them reach

Variables of another launcher, or left over from one, make no group: nobody would come. torch's own
rendezvous waits in C++, where neither Ctrl-C nor SIGTERM is answered; here every wait is short.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from secateur.errors import RecipeError

TO_MEET = timedelta(minutes=5)
"""How long the processes of a run wait for each other at its begin: torch loads in seconds, in a
minute or two from a slow network disk."""
_ATTEMPT = timedelta(seconds=5)
"""How long an attempt to reach the store may take, during which no signal is answered; and after
how much waiting it is told."""
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
"""Variables of the environment that torchrun sets to whole numbers."""


@dataclass(frozen=True)
class Group:
    """The processes of one run, as torchrun describes them to each.

    Attributes:
        rank, count: this is process `rank` of so many.
        local: its number on its host.
        host, port: where the store is.
        attempt: how often torchrun has started them anew.
    """

    rank: int
    count: int
    local: int
    host: str
    port: int
    attempt: int

    @property
    def serves(self) -> bool:
        """Whether this process keeps the store; torchrun may do so itself."""
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def group_of_torchrun() -> Group | None:
    """The group that torchrun put this process into; None if it did not, or there is no other.

    Raises:
        RecipeError: what torchrun should have set is missing, or no number.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, count, local, port, attempt = map(_number_in_environment, _NUMBERS)
    if count == 1:
        return None
    host = os.environ.get("MASTER_ADDR", "")
    if not (host and rank < count and 0 < port < 2**16):
        raise RecipeError(
            f"RANK={rank}, WORLD_SIZE={count}, MASTER_ADDR={host!r} and MASTER_PORT={port} in the"
            " environment name no group of processes",
            wanted="what torchrun sets",
        )
    return Group(rank, count, local, host, port, attempt)


def _number_in_environment(name: str) -> int:
    text = os.environ.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise RecipeError(
            f"{name}={text!r} in the environment" if text else f"no {name} in the environment",
            wanted="a number, as torchrun sets it",
            hint="the same without TORCHELASTIC_RUN_ID, if torchrun did not start this",
        )
    return int(text)


def meet(group: Group, patience: timedelta) -> Any:
    """The store that all processes of a group reach, once all have come.

    Args:
        group: the processes.
        patience: how long whoever waits for something in the store waits afterwards.

    Raises:
        RuntimeError: not all come within `TO_MEET`.
    """
    begun, told = time.monotonic(), False
    store: Any = None
    everybody = [f"here {number}" for number in range(group.count)]
    while store is None or not store.check(everybody):
        waited = time.monotonic() - begun
        if waited > _ATTEMPT.total_seconds() and not told:
            told = True
            print(
                f"process {group.rank} waits for the others of {group.count} at"
                f" {group.host}:{group.port}, for {TO_MEET.seconds} s at most",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        if waited > TO_MEET.total_seconds():
            raise RuntimeError(f"not all {group.count} came within {TO_MEET.seconds} s")
        if store is None:
            store = _store(group, patience)
            if store is not None:
                store.set(f"here {group.rank}", "")
        time.sleep(0.05)
    return store


def _store(group: Group, patience: timedelta) -> Any:
    """The store; None if nobody keeps it yet.

    Raises:
        RuntimeError: this process should keep it and cannot.
    """
    try:
        make_store: Any = getattr(dist, "TCPStore")  # noqa: B009 - torch's types do not export it
        store = make_store(
            group.host, group.port, is_master=group.serves, wait_for_workers=False,
            timeout=_ATTEMPT, multi_tenant=True,
        )  # fmt: skip
    except RuntimeError:
        if group.serves:
            raise
        return None
    store.set_timeout(patience)
    # torchrun --max-restarts starts all processes anew with the store that the old ones used
    return PrefixStore(f"attempt {group.attempt}", store)
