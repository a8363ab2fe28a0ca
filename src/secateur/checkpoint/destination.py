"""Says where a result may go, before any work is done for it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from secateur.checkpoint.companions import files_beside, refuse_links, weights_in
from secateur.errors import OutputError

STATE = "state"
"""Folder of what the next process needs to go on, in a result without its name: unfinished.py."""


@dataclass(frozen=True)
class Destination:
    """The place of a result, and what becomes of what is there.

    Attributes:
        out: the result folder; its parent is made if need be.
        source: folder of the model that the result is made from, for the files beside the weights.
        overwrite: replace `out` if it exists.
        restart: give up what an earlier run has finished.
        with_code: copy the code that lies beside the weights too.
    """

    out: Path
    source: Path
    overwrite: bool = False
    restart: bool = False
    with_code: bool = False

    def check(self) -> None:
        """Prove that a run can put its result there, before any work is done.

        Raises:
            OutputError: it cannot, or would destroy something.
            CheckpointError: the source would bring a private file along.
        """
        refuse_links(self.source, weights_in(self.source))
        files_beside(self.source, with_code=self.with_code)
        try:
            _check_folder(self.out.expanduser().resolve(), self.source.resolve(), self.overwrite)
        except (OSError, RuntimeError) as fault:  # too long a name, an unknown user after "~"
            reason = getattr(fault, "strerror", None) or str(fault)
            raise OutputError(
                f"the output folder cannot be made here ({reason})",
                where=self.out,
                hint="another --out",
            ) from fault


def _check_folder(out: Path, source: Path, overwrite: bool) -> None:
    if source == out or source.is_relative_to(out):
        raise OutputError(
            "the output folder is the model itself, or contains it", where=out, hint="another --out"
        )
    if out.exists() and not out.is_dir():
        raise OutputError("the output exists and is no folder", where=out, hint="another --out")
    if (out / "run.json").is_file() and (out / STATE).is_dir():
        shutil.rmtree(out / STATE, ignore_errors=True)  # its run was killed when all was done
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise OutputError(
                "the output folder exists and is not empty", where=out, hint="--overwrite"
            )
        record_only = [path.name for path in out.iterdir()] == ["run.json"]  # it was only measured
        if not record_only and not (out / "config.json").is_file():
            raise OutputError(
                "the output folder holds something else than a model and is not overwritten",
                where=out,
                hint="another --out",
            )
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise OutputError(
            "the output folder cannot be made here", where=parent, hint="a folder you may write to"
        )
