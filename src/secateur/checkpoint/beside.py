"""The folders that a run makes beside its result, and how it knows them for its own.

    .OUT.partial/                what is written so far; its state/ proves it (unfinished.py)
    .OUT.state/                  the state, while what is written gets its name
    .OUT.replaced/result/        what was at OUT, while the new one takes its place
    .OUT.recovery.safetensors    the training of an interrupted `secateur recover`

A folder of these names that a person made is never emptied, and a link is never followed.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from secateur.checkpoint.durable import UNFINISHED, flush, in_the_way, write_text
from secateur.checkpoint.proved import read_facts
from secateur.checkpoint.unfinished import IDENTITY
from secateur.errors import CheckpointError, OutputError

STATE = "state"
"""Folder of what the next process needs to go on, in a result without its name: unfinished.py."""
_IN_STATE = (IDENTITY, "block-*.json", "stream-*.safetensors", "weights-*.safetensors",
             "inputs-*.safetensors", "*dense*.safetensors", "allocation.json", "removed.json",
             "gradients", ".*.lock", f"*{UNFINISHED}", ".tmp*")  # fmt: skip
"""Whatever a run keeps in its state; a folder that holds anything else is somebody's."""
_MARK, _RESULT = "replaced.json", "result"
_LONGEST_NAME = "x" * 80
"""As long as any name that a run makes within its result."""

Listing = frozenset[tuple[str, int, int, int]]
"""Everything in a folder: name, and of a file its size, time and number."""


class Beside:
    """The places beside one result.

    Args:
        out: the result folder, absolute.

    Attributes:
        partial, state: what is written so far, and the state in it.
        recovery: the training of an interrupted recovery.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.partial = out.parent / f".{out.name}.partial"
        self.state = self.partial / STATE
        self.recovery = recovery_beside(out)
        self._parted = out.parent / f".{out.name}.state"
        self._replaced = out.parent / f".{out.name}.replaced"

    @property
    def there(self) -> Path:
        """The result that is there: at OUT, or out of the way where a run was killed."""
        retired = self._replaced / _RESULT
        return retired if not self.out.exists() and retired.is_dir() else self.out

    def check(self, command: str, *, restart: bool) -> None:
        """Prove that nobody else's work is in the way.

        Args:
            command: that wants to write here.
            restart: whether unfinished work may be given up.

        Raises:
            OutputError: something of these names was made by no run, or another command has left
                unfinished work.
            OSError: the names are too long.
        """
        longest = (self.state / _LONGEST_NAME, self._replaced / _RESULT, self._parted)
        for path in (*longest, self.out.parent / f".{self.out.name}.lock"):
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                path.lstat()  # raises for a name that is too long
        for folder, ours in (
            (self.partial, _is_partial(self.partial) or _is_state(self._parted)),
            (self._parted, _is_state(self._parted)),
            (self._replaced, _is_replaced(self._replaced)),
        ):
            if os.path.lexists(folder) and (not ours or not _is_folder(folder)):
                raise in_the_way(folder)
        if restart:
            return
        other = self._unfinished_command()
        if other not in (None, command):
            raise _unfinished(str(other), self.partial, command)
        if command != "recover" and self.recovery.is_file():
            raise _unfinished("recover", self.recovery, command)

    def settle(self) -> None:
        """Put in order what a run left that was killed while its result got its name."""
        self._bring_back()
        if self._parted.is_dir():
            if self.partial.is_dir() and not self.state.exists():
                self._parted.rename(self.state)
            else:
                shutil.rmtree(self._parted)

    def rehearse(self) -> None:
        """Prove that the result can get its name: what is at OUT moves out of the way, and back.

        Raises:
            OSError: the system refuses, as it does for what is mounted, locked, or on a layer below
                that of its parent; all is as it was.
        """
        self._replaced.mkdir(exist_ok=True)
        if os.path.lexists(self.out):
            try:
                self._retire()
            finally:
                self._bring_back()
        else:
            self._replaced.rmdir()

    def clear(self) -> None:
        """Remove what is written so far; the state, by which it is known, goes last."""
        if not self.partial.is_dir():
            return
        for path in self.partial.iterdir():
            if path.name != STATE:
                shutil.rmtree(path) if _is_folder(path) else path.unlink()
        shutil.rmtree(self.state, ignore_errors=True)

    def give_name(self, there: Listing | None) -> None:
        """Make what is written the result, in place of what was there at the start.

        Args:
            there: what was at OUT then, to be replaced; None if there was nothing.

        Raises:
            OutputError: something else is at OUT by now; all is as it was.
            OSError: the system refuses; all is as it was.
        """
        if there != listing(self.out):
            raise _appeared(self.out)
        flush(self.partial)
        self.state.rename(self._parted)
        try:
            if there is not None:
                self._retire()
                if there != listing(self._replaced / _RESULT):
                    raise _appeared(self.out)
            with suppress(OSError):
                self.out.rmdir()  # an empty one
            self.partial.rename(self.out)
        except BaseException as fault:
            self._bring_back()
            if self.partial.is_dir():
                self._parted.rename(self.state)
            if isinstance(fault, OSError) and fault.errno in _TAKEN:
                raise _appeared(self.out) from fault
            raise
        flush(self.out.parent)
        shutil.rmtree(self._parted, ignore_errors=True)
        self._remove_replaced()

    def _retire(self) -> None:
        """Put what is at OUT out of the way."""
        self._replaced.mkdir(exist_ok=True)
        write_text(self._replaced / _MARK, "{}\n")
        self.out.rename(self._replaced / _RESULT)

    def _bring_back(self) -> None:
        """Undo `_retire`, unless something else has OUT's name by now."""
        if not self._replaced.is_dir():
            return
        if not self.out.exists() and (self._replaced / _RESULT).is_dir():
            (self._replaced / _RESULT).rename(self.out)
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        """The mark, by which it is known, goes last."""
        shutil.rmtree(self._replaced / _RESULT, ignore_errors=True)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _unfinished_command(self) -> str | None:
        """The command whose finished work is kept; None if none is."""
        state = self.state if self.state.is_dir() else self._parted
        if not any(state.glob("block-*.json")) and not (state / "gradients").is_dir():
            return None
        try:
            return str(read_facts(state / IDENTITY)["identity"]["command"])
        except (CheckpointError, FileNotFoundError, KeyError, TypeError):
            return None  # whoever goes on with it says what is wrong


def recovery_beside(out: Path) -> Path:
    """The file in which an interrupted recovery whose result is to be `out` keeps its training."""
    return out.parent / f".{out.name}.recovery.safetensors"


def listing(folder: Path) -> Listing | None:
    """What lies in a folder; None if it is empty, or nothing is there.

    Raises:
        OSError: it cannot be read.
        OutputError: another file system is in it, which would be emptied with it.
    """
    if not os.path.lexists(folder):
        return None
    told = set()
    device = folder.lstat().st_dev
    for path in (folder, *folder.rglob("*")):
        seen = path.lstat()
        if seen.st_dev != device:
            raise OutputError(
                "another file system is mounted within the output folder",
                where=path,
                hint="another --out",
            )
        facts = (0, 0, 0) if path.is_dir() else (seen.st_size, seen.st_mtime_ns, seen.st_ino)
        told.add((str(path.relative_to(folder)), *facts))
    return None if len(told) == 1 and folder.is_dir() else frozenset(told)


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def _appeared(out: Path) -> OutputError:
    return OutputError(
        "something was put here while the run lasted, and is not replaced",
        where=out,
        hint="moving it away, and the same command again",
    )


def _unfinished(command: str, where: Path, asked: str) -> OutputError:
    give_up = ", --restart to give it up" if asked == "prune" else ""
    return OutputError(
        f"an unfinished `secateur {command}` lies here",
        where=where,
        hint=f"that command again to finish it{give_up}, or another --out",
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_partial(path: Path) -> bool:
    """Whether a folder was made by a run: it is empty, or its state proves it."""
    return _is_folder(path) and (not any(path.iterdir()) or _is_state(path / STATE))


def _is_state(path: Path) -> bool:
    """Whether a folder is the state of a run: nothing else is in it."""
    return _is_folder(path) and all(
        any(fnmatch(inside.name, pattern) for pattern in _IN_STATE) for inside in path.iterdir()
    )


def _is_replaced(path: Path) -> bool:
    """Whether a run has put a folder's former result out of the way."""
    if not _is_folder(path):
        return False
    names = {inside.name for inside in path.iterdir()}
    return not names or (_MARK in names and names <= {_MARK, _RESULT})
