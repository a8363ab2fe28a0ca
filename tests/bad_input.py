"""What the tables of bad input are made of: a place, what spoils it, and what must hold."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file
from torch import Tensor

from secateur import cli
from tiny import fingerprint
from tiny import save as save_folder


@dataclass(frozen=True)
class Place:
    """Where a case is played. All but `folder` is shared and must not be changed."""

    folder: Path
    dense: Path
    pruned: Path
    tokens: Path
    texts: Path

    @property
    def out(self) -> Path:
        return self.folder / "new" / "out"

    def prune(self, *more: object, model: object = None, **changes: object) -> list[object]:
        """A command that prunes; flags given by name replace those of a good command."""
        flags: dict[str, object] = {
            "calibration": self.tokens,
            "out": self.out,
            "method": "wanda",
            "sequence_length": 32,
            **changes,
        }
        named = [
            part
            for name, value in flags.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        return ["prune", model or self.dense, *named, *more]

    def evaluate(self, *more: object, model: object = None, text: object = None) -> list[object]:
        given = ["--text", text or self.tokens, "--sequence-length", 32]
        return ["evaluate", model or self.dense, *given, *more]

    def copy(self, *changes: Callable[[Path], object], of: Path | None = None) -> Path:
        """A copy of the dense model, or of another folder, with something done to it."""
        folder = shutil.copytree(of or self.dense, self.folder / "model")
        for change in changes:
            change(folder)
        return folder

    def model(self, model: Any) -> Path:
        return save_folder(model, self.folder / "model")

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def recipe(self, text: str) -> list[object]:
        return self.prune("--recipe", self.file("recipe.yaml", text))

    def text(self, name: str, content: bytes | str) -> list[object]:
        """A command that calibrates on such a file."""
        return self.prune(calibration=self.file(name, content), samples=8)

    def tensors(self, **tensors: Tensor) -> list[object]:
        """A command that calibrates on a file with such tensors."""
        save_file(tensors, self.folder / "given.safetensors")
        return self.prune(calibration=self.folder / "given.safetensors")

    def parquet(self, **columns: list[object]) -> list[object]:
        pq.write_table(pa.table(columns), self.folder / "given.parquet")
        return self.prune(calibration=self.folder / "given.parquet")


@contextmanager
def nothing(place: Place) -> Iterator[None]:
    yield


@contextmanager
def files_of_5_kB(place: Place) -> Iterator[None]:  # noqa: N802 - the unit's own spelling
    """The system refuses to let any file grow further, as it does with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        make: prepares it and gives the command line.
        said: what must be in the line.
        status: exit status.
        around: what holds while the command runs.
    """

    make: Callable[[Place], list[object]]
    said: list[str] = field(default_factory=list)
    status: int = 2
    around: Callable[[Place], Any] = nothing


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def content(name: str, new: bytes | str) -> Callable[[Path], object]:
    data = new if isinstance(new, bytes) else new.encode()
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, bytes_off: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-bytes_off])


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


BROKEN = "not a whole safetensors file"


def check_case(
    case: Case, place: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that helps, the right exit status, and everything as it was."""
    monkeypatch.chdir(place.folder)
    arguments = case.make(place)
    before = everything(place)
    capsys.readouterr()
    with case.around(place):
        status = run(arguments, monkeypatch)
    out, err = capsys.readouterr()
    print(err)
    assert status == case.status
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if not line.startswith("{")]  # nor the events
    assert [line.startswith("error: ") for line in lines] == [True]
    for part in case.said:
        assert part in lines[0]
    assert HELPS.search(lines[0]), "it does not say what was wanted, or what to try"
    assert everything(place) == before


HELPS = re.compile(
    r"wanted|try |did you mean|leave |give |Possible|Missing|No such|not in the range|not a valid"
    r"|Got unexpected|is not one of|matrices are not|not as they were|is missing",
    re.IGNORECASE,
)


def everything(place: Place) -> tuple[Any, ...]:
    """Names of all files and folders, hidden ones too, and the bytes of the files."""
    shared = (place.dense, place.pruned, place.tokens.parent, place.texts)
    names = sorted(str(path) for path in place.folder.rglob("*"))
    return names, fingerprint(place.folder), *(fingerprint(folder) for folder in shared)


def run(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
    with pytest.raises(SystemExit) as leave:
        cli.main()
    return int(leave.value.code or 0)
