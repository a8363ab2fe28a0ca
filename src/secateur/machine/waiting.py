"""What is being done right now, and a line that says so where nothing was said for a while.

    {"event": "waiting", "doing": "wanda 2:4, 3 of 30: observe, 5 of 64", "seconds": 42.1}

Whoever begins a piece of work that may take longer says its name: `doing` around it or as a
decorator, `each` over its parts; of the blocks of a run `Progress` is told (progress.py). Names lie
within each other, as the work does. A thread of its own looks at them, because one call into torch
or a library may take minutes; it costs nothing else. Only the main thread names what it does: what
reads ahead or writes behind is not what a person waits for.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

_T = TypeVar("_T")

EVERY = 30.0
"""Seconds of silence after which a line says what is being done."""


class Work:
    """A piece of work that has begun.

    Args:
        name: what is being done; "" if only its parts have names.

    Attributes:
        since: when it began, or its part or block, whichever was last, by `time.monotonic`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.forget()

    def forget(self) -> None:
        """Take back all that was told but the name."""
        self._part, self._done, self._total, self._phase = "", 0, 0, ""
        self.since = time.monotonic()

    def begin(self, part: str, total: int) -> None:
        """A part of it begins, of so many blocks."""
        self.forget()
        self._part, self._total = part, total

    def block(self) -> None:
        """One more block of the part is done; after the last there is no part."""
        self._done, self._phase, self.since = self._done + 1, "", time.monotonic()
        if self._done >= self._total:
            self.forget()

    def at(self, phase: str, done: int = 0, total: int = 0) -> None:
        """It is in a phase, `done` of `total` steps of which are done."""
        self._phase = f"{phase}, {done} of {total}" if total else phase

    def __str__(self) -> str:
        """All that is known of it, in a phrase."""
        part = self._part
        if part and self._done:
            part += f", {self._done} of {self._total}"
        return ": ".join(filter(None, (self._name, part, self._phase)))


_begun: list[Work] = [Work("")]
"""What has begun and is not ended, each within the one before; a part of the first may be told."""
_guard = threading.RLock()
"""Held while a line is written, so that no two are mixed."""
_told = time.monotonic()
"""When a line was written last."""


def innermost() -> Work:
    """The work that is within all other."""
    return _begun[-1]


@contextmanager
def doing(name: str) -> Iterator[Work]:
    """Inside, or in a function that this decorates, the main thread does `name`."""
    work = Work(name)
    told = threading.current_thread() is threading.main_thread()
    if told:
        _begun.append(work)
    try:
        yield work
    finally:
        if told:
            _begun.remove(work)


def each(name: str, parts: Collection[_T]) -> Iterator[_T]:
    """The parts of a piece of work, one after the other; it is said how many are done."""
    with doing(name) as work:
        for number, part in enumerate(parts):
            work.at(f"{number} of {len(parts)}")
            yield part


def what() -> str:
    """What is being done, the whole before its parts."""
    return ": ".join(filter(None, map(str, list(_begun))))


def tell(stream: TextIO, facts: dict[str, Any]) -> None:
    """Write one line of JSON, whole and at once.

    Raises:
        OSError: it cannot be written.
    """
    global _told
    with _guard:
        _told = time.monotonic()
        stream.write(json.dumps(facts) + "\n")
        stream.flush()


class Watch:
    """Inside, a line on a stream says what is being done whenever `EVERY` seconds were silent.

    Args:
        stream: where the lines of `tell` go, too.
    """

    def __init__(self, stream: TextIO) -> None:
        global _told
        self._stream, self._ended = stream, threading.Event()
        self._thread = threading.Thread(target=self._look, name="secateur-watch", daemon=True)
        _told = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say nothing more; a line that nobody reads is not waited for."""
        self._ended.set()
        self._thread.join(timeout=1.0)

    def _look(self) -> None:
        with suppress(OSError, ValueError):  # full, closed: the command meets it by itself
            while not self._ended.wait(max(0.0, _told + EVERY - time.monotonic())):
                with _guard:
                    silent = time.monotonic() - _told
                    if silent >= EVERY and not self._ended.is_set():
                        seconds = round(time.monotonic() - innermost().since, 1)
                        tell(self._stream, _line(seconds))


def _line(seconds: float) -> dict[str, Any]:
    """The line: what is being done, and for how many seconds so far."""
    return {"event": "waiting", "doing": what(), "seconds": seconds}
