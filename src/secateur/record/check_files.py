"""Which files of a model folder are as a run wrote them or read them, for `secateur check`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from secateur.checkpoint import Checkpoint, locate
from secateur.checkpoint.companions import leads_inside
from secateur.checkpoint.durable import is_as_written
from secateur.checkpoint.weight_files import CONFIG, looks_like_weights
from secateur.errors import CheckpointError
from secateur.machine.waiting import each
from secateur.record.record import RunRecord


def changed_files(folder: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the files that do not have the checksum in the record."""
    hashed = each("hashing files", files.items())
    return tuple(name for name, checksum in hashed if not _vouched(folder, name, checksum))


def unproved_files(checkpoint: Checkpoint, record: RunRecord | None) -> tuple[str, ...]:
    """Names of the files of weights that are not loaded, in the folder and below it, and of the
    files that make the model and of which a record has no checksum.
    """
    idle = {path.name for path in checkpoint.idle_weight_files}
    unknown: set[str] = set()
    if record is not None:
        loaded = {CONFIG, *(path.name for path in checkpoint.weight_files)}
        unknown = loaded - record.files.keys()
    return tuple(sorted({*idle, *unknown, *_below(checkpoint.folder)}))


def unlike_source(made_from: str, record: RunRecord | None, model: str) -> tuple[str, ...]:
    """Names of the files that make a model, and are not those that the run of a record read.

    Args:
        made_from: what is said to be the source.
        record: of the run.
        model: its result, as it was asked for.

    Raises:
        CheckpointError: there is no record, or it does not say what the run read.
    """
    source = locate(made_from)
    recorded = {} if record is None else record.source_files
    if not recorded:
        raise CheckpointError(
            "no run record that says which source it was", where=model, hint="without --source"
        )
    files = Checkpoint(source).source
    files.read_all()
    told = files.sums()
    names = sorted(told.keys() | recorded.keys())
    return tuple(name for name in names if told.get(name) != recorded.get(name))


def _vouched(folder: Path, name: str, checksum: str) -> bool:
    """Whether a file has a checksum; a link in a stranger's folder cannot lead elsewhere."""
    if not leads_inside(folder, Path(name)):
        return False
    try:
        return is_as_written(folder / name, checksum)
    except (OSError, ValueError):  # no file can have that name, or nobody may read it
        return False


def _below(folder: Path) -> Iterator[str]:
    """Files of weights in the sub-folders that are not hidden, relative to the folder."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(at).relative_to(folder)
        if below != Path():
            yield from ((below / name).as_posix() for name in files if looks_like_weights(name))
