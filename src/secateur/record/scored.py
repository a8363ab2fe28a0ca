"""Puts what a model scored in tasks into the record beside it."""

from __future__ import annotations

from pathlib import Path

from secateur.checkpoint.lock import alone_at
from secateur.errors import CheckpointError
from secateur.evaluation import TaskEvaluation
from secateur.record.record import RunRecord, read_record, write_record

_TO_ADD = 60.0
"""Seconds to wait for another process that adds to the same record."""


def record_to_add_to(folder: Path) -> RunRecord:
    """The record in a folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if (record := read_record(folder)) is None:
        where = folder / "run.json"
        raise CheckpointError("no run record to add to", where=where, hint="without --record")
    return record


def add_to_record(folder: Path, evaluation: TaskEvaluation, asked: RunRecord) -> RunRecord:
    """Put what a model scored into the run.json beside it, in place of the same tasks before.

    Args:
        folder: of the model.
        evaluation: what it scored.
        asked: its record when it was asked.

    Returns:
        the record as it is now.

    Raises:
        CheckpointError: there is no record, or it is that of another model by now.
        OutputError: it cannot be written.
    """
    with alone_at(folder / "run.json", wait=_TO_ADD):
        record = record_to_add_to(folder)
        if (record.created, record.files) != (asked.created, asked.files):
            raise CheckpointError(
                "another model was put here while this one was asked",
                where=folder,
                hint="the same command again",
            )
        others = tuple(other for other in record.tasks if other.asked != evaluation.asked)
        updated = record.model_copy(update={"tasks": (*others, evaluation)})
        write_record(folder, updated)
    return updated
