"""Says where a result may go, before any work is done for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.checkpoint.beside import Beside
from secateur.checkpoint.claim import refuse_place
from secateur.checkpoint.companions import files_beside
from secateur.errors import OutputError, reason
from secateur.machine.paths import as_path


@dataclass(frozen=True)
class Destination:
    """The place of a result, and what becomes of what is there.

    Attributes:
        out: the result folder; its parent is made if need be.
        source: folder of the model that the result is made from, for the files beside the weights.
        overwrite: replace `out` if it exists.
        restart: give up what an earlier run has finished.
        with_code: copy the code that lies beside the weights too.
        others: further folders of models that the run reads.
        command: that makes the result; it does not go on with another's unfinished work.
    """

    out: Path
    source: Path
    overwrite: bool = False
    restart: bool = False
    with_code: bool = False
    others: tuple[Path, ...] = ()
    command: str = "prune"

    @property
    def resolved(self) -> Path:
        """The result folder, absolute: a link stays, what it leads to is the result.

        Raises:
            OutputError: there can be no such folder.
        """
        return result_path(self.out)

    def check(self) -> None:
        """Prove that a run can put its result there, before any work is done; nothing is changed.

        Raises:
            OutputError: it cannot, or would destroy something.
            CheckpointError: the source would bring a private file along.
        """
        files_beside(self.source, with_code=self.with_code)
        out = self.resolved
        beside = Beside(out)
        try:
            for model in (self.source, *self.others):
                _check_place(out, model.resolve())
            beside.check(self.command, restart=self.restart)
            _check_folder(beside.there, self.overwrite)
        except OSError as fault:  # too long a name, a missing right
            raise OutputError(
                f"the output folder cannot be made here ({reason(fault)})",
                where=self.out,
                hint="another --out",
            ) from fault


def result_path(out: str | Path) -> Path:
    """The folder that a person wants a result in, absolute, all links followed.

    Raises:
        OutputError: there can be no such folder.
    """
    return as_path(out, fault=OutputError).resolve()


def _check_place(out: Path, source: Path) -> None:
    """Raise unless a folder of this name can be made, away from the source."""
    if source == out or source.is_relative_to(out) or out.is_relative_to(source):
        raise OutputError(
            "the output folder is the model itself or another that is read, or one of them contains"
            " the other",
            where=out,
            hint="another --out",
        )
    if out.exists() and not out.is_dir():
        raise OutputError("the output exists and is no folder", where=out, hint="another --out")
    if out.is_mount():
        raise OutputError(
            "the output folder is a whole file system, which cannot be renamed",
            where=out,
            hint=f"a folder within it, such as {out / 'model'}",
        )
    refuse_place(out)


def _check_folder(there: Path, overwrite: bool) -> None:
    """Raise if something lies in the result's folder that is not to be replaced."""
    names = {path.name for path in there.iterdir()} if there.is_dir() else set()
    if not names:
        return
    if names != {"run.json"} and "config.json" not in names:  # of a run that only measured
        raise OutputError(
            "the output folder is not empty and holds something else than a model",
            where=there,
            hint="another --out",
        )
    if not overwrite:
        raise OutputError(
            "the output folder exists and is not empty", where=there, hint="--overwrite"
        )
