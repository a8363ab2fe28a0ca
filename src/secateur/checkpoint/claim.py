"""Says whether a file that a person named may be written: asked before the work, and after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from secateur.checkpoint.durable import refuse_no_file
from secateur.errors import OutputError
from secateur.machine.paths import as_path


def claim_file(
    given: str | Path,
    *,
    overwrite: bool,
    ours: Callable[[Path], bool] = lambda path: False,
    hint: str = "--overwrite, or another name",
) -> Path:
    """The file to write where a person asked for one: the one that a link leads to.

    Args:
        given: the name; folders above it need not exist.
        overwrite: whether a file that is there may be replaced, whatever it is.
        ours: whether a file that is there was written by an earlier run, for the next to replace.
        hint: what helps where a file is in the way.

    Raises:
        OutputError: it cannot be written, or somebody's file is there.
    """
    path = as_path(given, fault=OutputError).resolve()
    refuse_no_file(path)
    refuse_place(path)
    if path.exists() and not overwrite and not ours(path):
        raise OutputError("the file exists", where=path, hint=hint)
    return path


def refuse_place(path: Path) -> None:
    """Raise unless a file or folder could be made at `path`, the folders above it too.

    Raises:
        OutputError: what is above it is no folder, or may not be written to.
    """
    above = path.parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise OutputError(
            "nothing can be made here: what lies above is no folder",
            where=above,
            hint="another place",
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            "the folder may not be written to", where=above, hint="a folder that you may write to"
        )
