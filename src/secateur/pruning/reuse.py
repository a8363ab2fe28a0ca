"""What the runs of a comparison have in common, made once: opened model, tokens, dense outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from secateur.statistics import Need

T = TypeVar("T")

FOR_MEASURING = frozenset({"heldout", "dense"})
"""Names of what is made to measure a run, and is no part of the work of pruning."""


@dataclass(frozen=True)
class _Made:
    key: Hashable
    value: Any
    seconds: float


class Remembered:
    """Remembers the last thing that was made under each name; nothing, for a run that stands alone.

    It also keeps account of time, so that the seconds of a run are those that it would take alone:
    `owed` is what others spent for it, less what it spent on measuring.

    Args:
        folder: for files that outlast one run; None lets every run keep its own.
        needs: the statistics that any of the runs needs of the first block, which is dense and
            sees the same inputs in all of them.
    """

    def __init__(self, folder: Path | None = None, needs: frozenset[Need] = frozenset()) -> None:
        self.folder = folder
        self.needs = needs
        self.owed = 0.0
        self._made: dict[str, _Made] = {}

    def once(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, or gave the last time under this name if the key is the same."""
        made = self._made.get(name)
        if made is None or made.key != key:
            self._made.pop(name, None)  # let go of it before there are two
            began = time.perf_counter()
            value = make()
            made = _Made(key, value, time.perf_counter() - began)
            self._made[name] = made
            self.owed -= made.seconds if name in FOR_MEASURING else 0.0
        elif name not in FOR_MEASURING:
            self.owed += made.seconds
        remembered: T = made.value
        return remembered

    def forget(self, name: str) -> None:
        """Make it anew the next time."""
        self._made.pop(name, None)
