"""Records of earlier runs: every `run.json` below the folders that were named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.errors import CheckpointError
from secateur.record.record import RunRecord, read_record_file

RECORD = "run.json"
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "method": str,
    "pattern": (str, int, float),
    "seed": int,
}


def find_records(places: Sequence[Path]) -> list[RunRecord]:
    """The records in these files, and below these folders, hidden folders left out.

    Raises:
        CheckpointError: a place is not there or holds none, or a record cannot be read.
    """
    paths: dict[Path, Path] = {}
    for place in places:
        found = [place] if place.is_file() else list(_below(place))
        if not found:
            there = place.is_dir()
            raise CheckpointError(
                f"no {RECORD}" if there else "no such file or folder",
                where=f"{place} or below it" if there else place,
                wanted="the folder of a run of secateur prune, or one that holds several",
            )
        paths |= {path.resolve(): path for path in found}
    return [_read(path) for path in paths.values()]


def _below(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RECORD in files:
            yield Path(at) / RECORD


def _read(path: Path) -> RunRecord:
    record = read_record_file(path)
    for key, kind in _NEEDED.items():
        if not isinstance(record.recipe.get(key), kind):
            raise CheckpointError(f"the run record's recipe names no {key}", where=path)
    if not record.weights:
        raise CheckpointError("the run record counts no matrix", where=path)
    return record
