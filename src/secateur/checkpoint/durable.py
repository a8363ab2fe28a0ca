"""Files that are whole or not there: written under another name, flushed, renamed.

A process that is killed, a full disk and a power cut leave the file that was there before, or none;
what is left of an attempt ends in `.unfinished`, and its name is no other attempt's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import OutputError

UNFINISHED = ".unfinished"
"""Ending of the names of files and folders that are still being written."""
_MOST_OF_A_NAME = 100
"""Bytes of a file's name that its unfinished one repeats: no name becomes too long by it."""
_FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)]
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system or safetensors say of a full disk or a missing right into one line.

    Raises:
        OutputError: what is done inside cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as fault:
        number = getattr(fault, "errno", None)
        if any(os.strerror(one) in str(fault) for one in _FULL):
            what, hint = "cannot be written", "freeing space, and the same command again"
        elif number in _FORBIDDEN or any(os.strerror(one) in str(fault) for one in _FORBIDDEN):
            what, hint = "may not be written", "a folder that you may write to"
        else:
            what, hint = "cannot be written", "another place"
        raise OutputError(f"{what} ({fault})", where=path, hint=hint) from fault


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name under which to write a file that is `path` once it is whole and on the disk.

    Raises:
        OutputError: it cannot be written, or what is there is no file: a device is none.
    """
    refuse_no_file(path)
    unfinished = unfinished_name(path)
    with writing(path):
        try:
            unfinished.touch()
            rights = unfinished.stat().st_mode & 0o777  # umask asks the whole process
            yield unfinished
            unfinished.chmod(rights)  # safetensors makes files for their owner only
            flush(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # the space may be what is missing
            raise


def unfinished_name(path: Path) -> Path:
    """A name beside `path` to write it under, which nobody else has."""
    start = path.name.encode()[:_MOST_OF_A_NAME].decode(errors="ignore")
    return path.with_name(f".{start}.{secrets.token_hex(4)}{UNFINISHED}")


def left_unfinished(path: Path) -> list[Path]:
    """What killed attempts at `path` have left; for whoever knows that none is at work."""
    start = unfinished_name(path).name[: -len(UNFINISHED) - 8]
    return [
        left
        for left in path.parent.iterdir()
        if left.name.startswith(start) and len(left.name) == len(start) + 8 + len(UNFINISHED)
        and left.name.endswith(UNFINISHED)
    ]  # fmt: skip


def refuse_no_file(path: Path) -> None:
    """Raise if something lies at `path` that a file must not replace: a device, a pipe, a folder.

    Raises:
        OutputError: it does.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise OutputError(
            f"no file can be written here: it is {kind}", where=path, wanted="a file's name"
        )


def in_the_way(path: Path) -> OutputError:
    """What to say of a name that only runs give, under which lies what none has left."""
    return OutputError(
        f"{path.name} is in the way, and no run has left it",
        where=path.parent,
        hint="moving it away, or another place",
    )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """A safetensors file with `facts` in its header, whole or not at all."""
    with replacing(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata={"format": "pt", **(facts or {})})


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Windows opens no folder, and flushes only a file that may be written to.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_as_written(path: Path, checksum: str) -> bool:
    """Whether there is a file of that SHA-256."""
    return path.is_file() and sha256(path) == checksum


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
