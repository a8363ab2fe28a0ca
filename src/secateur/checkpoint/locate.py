"""Finds the folder of a model by what was given: a path, a name on the hub, or builtin.

A GGUF file is made a folder of, once (`from_gguf.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

from secateur.bundled import BUILTIN_MODEL, FOLDER
from secateur.checkpoint.from_gguf import folder_of, is_gguf
from secateur.checkpoint.hub import fetch
from secateur.checkpoint.no_model import no_such_folder, not_a_folder
from secateur.errors import CheckpointError, unreadable
from secateur.machine.paths import Location, as_path
from secateur.machine.waiting import doing

SNAPSHOTS = "snapshots"
"""Folder of the hub's cache that has one folder for every commit, which is called like it."""


def locate(model: Location, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model: `model` itself, the bundled one, or the snapshot of a hub name.

    Args:
        model: a folder; a GGUF file; a name on the hub, alone or with a branch, tag or commit as
            owner/name@revision; or builtin.
        trust_remote_code: fetch the code that lies beside the weights too.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such model or is out of reach;
            or a revision is given of what is on no hub; or a GGUF file that is not read.
    """
    given = os.fspath(model)
    folder = FOLDER if given == BUILTIN_MODEL else as_path(given, fault=CheckpointError)
    if is_gguf(folder):
        return folder_of(folder)
    if _is_folder(folder):
        return folder
    name, at, revision = given.partition("@")
    there = as_path(name, fault=CheckpointError)
    if at and (name == BUILTIN_MODEL or is_gguf(there) or _is_folder(there)):
        raise CheckpointError(
            f"{'a GGUF file' if is_gguf(there) else 'a folder'} has no revisions, and {revision!r}"
            " was asked for",
            where=name,
            wanted="a name on the hub, such as owner/model",
        )
    if given.startswith((".", "/", "~")) or name.count("/") != 1:
        raise no_such_folder(given, folder)
    with doing(f"fetching {name} from the hub"):
        return fetch(name, revision or None, trust_remote_code=trust_remote_code)


def _is_folder(path: Path) -> bool:
    """Whether there is a folder.

    Raises:
        CheckpointError: there is a file, or no right to look.
    """
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return True
        there = path.exists()
    except OSError as fault:
        raise unreadable(path, fault, CheckpointError) from fault
    if there:
        raise not_a_folder(path)
    return False


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds; None for any other folder."""
    parent = folder.parent
    of_the_cache = parent.name == SNAPSHOTS and parent.parent.name.startswith("models--")
    return folder.name if of_the_cache else None
