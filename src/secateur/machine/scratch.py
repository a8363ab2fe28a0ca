"""Folders for files of this process, which do not outlive it.

    TMPDIR/secateur-scratch-x1y2z3          removed at the end: of the work, by an error, by SIGTERM
    TMPDIR/secateur-scratch-x1y2z3.lock     held while the process lives

What is left by a process that was killed (SIGKILL) is removed by the next one that makes such a
folder at the same place: nobody holds its lock any more.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filelock import FileLock

from secateur.errors import OutputError

_START, _LOCK = "secateur-scratch-", ".lock"
_TO_LOOK = 10.0
"""Seconds to wait for a lock that has just been made: another process looks whether it is held."""
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What the system sends a process that is to end, and may still tidy up."""


@contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """A new, empty folder, which is removed at the end.

    Args:
        within: where to make it; none: where the system keeps such files.

    Raises:
        OutputError: it cannot be made.
    """
    within = within or Path(tempfile.gettempdir())
    folder = within / f"{_START}{secrets.token_hex(6)}"
    lock = FileLock(f"{folder}{_LOCK}", timeout=_TO_LOOK, thread_local=False)
    with _ending_is_an_error():
        try:
            Path(lock.lock_file).touch()
            lock.acquire()
            remove_left(within)
            folder.mkdir()
        except OSError as fault:
            raise OutputError(
                f"no folder for temporary files can be made ({fault.strerror or fault})",
                where=within,
                hint="setting TMPDIR to a folder that can be written to",
            ) from fault
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()


def remove_left(within: Path) -> None:
    """Remove the folders of processes that are gone."""
    for path in within.glob(f"{_START}*{_LOCK}"):
        folder = path.with_suffix("")
        if path.is_symlink() or folder.is_symlink():
            continue
        with suppress(OSError), FileLock(str(path), timeout=0, thread_local=False):  # not held
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)


@contextmanager
def _ending_is_an_error() -> Iterator[None]:
    """Inside, a signal to end unwinds the process, where it would have stopped it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in _ENDING}
    silent = [one for one, handler in before.items() if handler is signal.SIG_DFL]
    for one in silent:
        signal.signal(one, _leave)
    try:
        yield
    finally:
        for one in silent:
            signal.signal(one, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)  # tidying up is not to be ended
    raise SystemExit(128 + number)
