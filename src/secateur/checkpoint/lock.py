"""Lets one process at a time write a result: a lock beside it, which dies with its process.

    OUT's parent/.OUT.lock    while a run writes OUT

The system holds the lock, not the file: what a killed run leaves behind stops nobody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from secateur.checkpoint.durable import in_the_way, writing
from secateur.errors import OutputError


class OutputLock:
    """The right to write one result.

    Args:
        out: the result, a folder or a file; it need not exist, its parent must once the lock is
            taken.
        wait: seconds to wait for whoever holds it.
    """

    def __init__(self, out: Path, wait: float = 0.0) -> None:
        self._path = out.parent / f".{out.name}.lock"
        self._lock = FileLock(str(self._path), timeout=wait, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this object has taken the lock."""
        return self._lock.is_locked

    def take(self) -> None:
        """Hold the lock until `let_go`, or until the process is gone.

        Raises:
            OutputError: another run holds it, no file can be made here, or somebody's file is in
                its place: a lock is empty.
        """
        path = self._path
        if path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size)):
            raise in_the_way(path)
        with writing(self._path):
            self._path.touch()  # filelock takes a place where no file can be made for a held lock
        try:
            self._lock.acquire()
        except Timeout as fault:
            raise OutputError(
                "another run is writing here",
                where=self._path,
                hint="waiting for it, or another place",
            ) from fault

    def let_go(self) -> None:
        """Let another run write, and remove the file."""
        if sys.platform != "win32":
            with suppress(OSError):  # a folder that lets no file go
                self._path.unlink()  # while it is held: nobody else's can be removed
        self._lock.release()
        if sys.platform == "win32":
            with suppress(OSError):  # another run has it open by now
                self._path.unlink()


@contextmanager
def alone_at(out: Path, wait: float = 0.0) -> Iterator[None]:
    """Inside, no other run writes `out`.

    Args:
        out: a folder or a file.
        wait: seconds to wait for whoever does.

    Raises:
        OutputError: another run does, or nothing can be written there.
    """
    lock = OutputLock(out, wait)
    lock.take()
    try:
        yield
    finally:
        lock.let_go()
