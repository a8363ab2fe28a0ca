"""Files that are whole or not there: written under another name, flushed, renamed.

A process that is killed, a full disk and a power cut leave the file that was there before, or none;
what is left of an attempt ends in `.unfinished`.
"""

from __future__ import annotations

import errno
import hashlib
import os
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
_FULL = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system or safetensors say of a full disk or a missing right into one line.

    Raises:
        OutputError: what is done inside cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as fault:
        full = any(os.strerror(number) in str(fault) for number in _FULL)
        hint = "freeing space, and the same command again" if full else "another place"
        raise OutputError(f"cannot be written ({fault})", where=path, hint=hint) from fault


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name under which to write a file that is `path` once it is whole and on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    with writing(path):
        try:
            yield unfinished
            unfinished.chmod(0o666 & ~_umask())  # safetensors makes files for their owner only
            flush(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # the space may be what is missing
            raise


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


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
