"""Records of earlier runs: every `run.json` below the folders that were named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.errors import CheckpointError
from secateur.machine.waiting import each
from secateur.recipe.stage import PRUNE
from secateur.record.record import RunRecord, read_record_file

RECORD = "run.json"


def find_records(paths: Sequence[Path]) -> list[RunRecord]:
    """The records in these files, and below these folders, hidden folders left out.

    Raises:
        CheckpointError: a path is not there or holds none, or a record cannot be read.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        below = [path] if path.is_file() else list(_below(path))
        if not below:
            there = path.is_dir()
            raise CheckpointError(
                f"no {RECORD}" if there else "no such file or folder",
                where=f"{path} or below it" if there else path,
                wanted="the folder of a run of secateur prune, or one that holds several",
            )
        files |= {file.resolve(): file for file in below}
    return [_read(file) for file in each("reading records", files.values())]


def _below(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RECORD in files:
            yield Path(at) / RECORD


def _read(path: Path) -> RunRecord:
    """A record that says enough to stand beside others."""
    record = read_record_file(path)
    lacking = [
        name
        for name, kind in (("model", str), ("seed", int))
        if not isinstance(record.settings.get(name), kind)
    ]
    for stage in record.stages:
        needed = (("method", str), ("pattern", str | int | float)) if stage.kind == PRUNE else ()
        lacking += [name for name, kind in needed if not isinstance(stage.settings.get(name), kind)]
    if lacking:
        raise CheckpointError(f"the run record's recipe names no {lacking[0]}", where=path)
    if not record.weights:
        raise CheckpointError("the run record counts no matrix", where=path)
    return record
