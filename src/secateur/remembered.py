"""What the runs of a comparison have in common, made once: opened model, tokens, dense outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from secateur.statistics import Need

T = TypeVar("T")


@dataclass(frozen=True)
class Remembered:
    """Remembers the last thing that was made under each name; empty for a run that stands alone.

    Attributes:
        folder: for files that outlast one run; None lets every run keep its own.
        needs: the statistics that any of the runs needs of the first block, which is dense and
            sees the same inputs in all of them.
    """

    folder: Path | None = None
    needs: frozenset[Need] = frozenset()
    _made: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)

    def once(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, or gave the last time under this name if the key is the same."""
        last = self._made.get(name)
        if last is None or last[0] != key:
            self._made.pop(name, None)  # let go of it before there are two
            self._made[name] = (key, make())
        made: T = self._made[name][1]
        return made

    def forget(self, name: str) -> None:
        """Make it anew the next time."""
        self._made.pop(name, None)
