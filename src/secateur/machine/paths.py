"""Makes a path of what a person gave, or says in one line why there can be none."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from secateur.errors import ModelError, SecateurError

Location = str | os.PathLike[str]
"""A folder, a file, or a name on the hub."""


def location(model: object) -> str:
    """The folder, the file or the hub name that a door was given as its model.

    Raises:
        ModelError: it is something else, such as a model in memory.
    """
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        if isinstance(path, str):
            return path
    if hasattr(model, "state_dict"):
        raise ModelError(
            f"a {type(model).__name__} in memory is no folder",
            wanted="a folder or a hub name",
            hint="save_pretrained of it, or secateur.prune, which takes a model of transformers",
        )
    raise ModelError(
        f"a {type(model).__name__} is no model", wanted="a folder, a hub name or builtin"
    )


def pinned(model: Location, revision: str | None) -> str:
    """A model of the hub at one of its revisions, as one name: owner/name@revision.

    >>> pinned("owner/name", "main")
    'owner/name@main'
    """
    return location(model) if revision is None else f"{location(model)}@{revision}"


def near_path(path: Path, *, folder: bool = False) -> str | None:
    """What lies beside a missing path and looks most like it; None if nothing does.

    Args:
        path: the missing one.
        folder: whether only folders count.
    """
    try:
        beside = [one.name for one in path.parent.iterdir() if not folder or one.is_dir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, sorted(beside)[:MOST_BESIDE], n=1, cutoff=0.65)
    return str(path.parent / near[0]) if near else None


MOST_BESIDE = 1000
"""Names that a misspelt one is compared with at most: more would take seconds."""


def as_path(given: str | os.PathLike[str], *, fault: type[SecateurError]) -> Path:
    """The path that was given, `~` unfolded; it need not exist.

    Args:
        given: as it was typed.
        fault: of which kind the error is.

    Raises:
        SecateurError: no file can have that name: it is empty, the user after `~` is unknown, the
            name is too long, holds a null byte, or cannot be written as UTF-8. It is a `fault`.
    """
    try:
        if not os.fspath(given):
            raise ValueError("it is empty")
        path = Path(given).expanduser()
        str(path).encode("utf-8")  # every record and message names it
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()  # the system refuses names that are too long, or hold a null byte
    except (OSError, RuntimeError, ValueError) as trouble:
        reason = getattr(trouble, "strerror", None) or str(trouble)
        named = ascii(os.fspath(given))
        named = named if len(named) <= 80 else f"{named[:77]}..."
        raise fault(
            f"{named} can be no path ({' '.join(reason.split())})", hint="another name"
        ) from trouble
    return path
