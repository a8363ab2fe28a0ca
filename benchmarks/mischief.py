"""The rest of `faults.py`: files change under a run, the disk is full, two runs want one folder.

Every trial ends well if it loses nothing and mixes nothing: each command ends in the bits of the
reference or in one line with exit status 2, no result is left by one that was refused, and once the
mischief is undone the same command (with --restart where the source was changed) gives those bits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

KINDS = ("source, killed", "source, running", "shard", "state", "disk", "two")


@dataclass(frozen=True)
class Trial:
    """One mischief.

    Attributes:
        kind: of `KINDS`.
        what: which file was changed, or how much room there was.
        refused: whether a command ended in one line.
        well: whether nothing was lost and nothing mixed.
        said: the line.
    """

    kind: str
    what: str
    refused: bool
    well: bool
    said: str = ""


class Runs:
    """Runs of one command, as `faults.py` makes them.

    Args:
        folder: holds model and texts.
        start: starts the command in a process: out, more options, file for what is told.
        reference: SHA-256 of every file of an uninterrupted run.
        checksums: those of a folder.
    """

    def __init__(self, folder: Path, start: Any, reference: dict[str, str], checksums: Any) -> None:
        self.folder, self.start = folder, start
        self._reference, self._checksums = reference, checksums
        self.out = folder / "out"

    def end(self, process: BaseProcess, told: str = "told") -> tuple[int | None, str]:
        """Exit status, and the line if it failed."""
        process.join()
        text = (self.folder / told).read_text().strip().splitlines()
        return process.exitcode, text[-1] if text and process.exitcode else ""

    def again(self, *more: str) -> tuple[int | None, str]:
        """The command to its end."""
        return self.end(self.start(self.out, more, "told"))

    def same(self, out: Path | None = None) -> bool:
        """Whether the result is that of the reference; it is removed."""
        folder = out or self.out
        if not folder.exists():
            return False
        files = self._checksums(folder)
        record = json.loads((folder / "run.json").read_text())
        shutil.rmtree(folder)
        return bool(files == self._reference == record["files"])

    def clean(self) -> bool:
        """Whether nothing of the last trial is left; what is left is removed."""
        left = [path for path in self.folder.iterdir() if path.name.startswith((".out", "out"))]
        left = [path for path in left if path.suffix != ".lock"]
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return not left

    def killed(self, chance: random.Random) -> Path:
        """The folder of a run that was killed after some of its blocks."""
        partial = self.folder / ".out.partial"
        while True:
            after = chance.randrange(1, 4)
            process = self.start(self.out, (), "told")
            while process.is_alive() and len(list(partial.glob("state/block-*.json"))) < after:
                process.join(0.002)
            if process.is_alive():
                process.kill()
                process.join()
                if partial.exists() and list(partial.glob("state/block-*.json")):
                    return partial
            self.clean()


def flip(path: Path, chance: random.Random) -> str:
    """Change one bit of a file, of its tensors if it has any; its time is put back."""
    told, content = path.stat(), bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", content[:8])[0] if path.suffix == ".safetensors" else 0
    position = chance.randrange(begin, len(content))
    content[position] ^= 1 << chance.randrange(8)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    return f"{path.name} at {position}"


@contextmanager
def as_it_was(path: Path) -> Iterator[None]:
    """Afterwards, a file has its bytes and its times again."""
    told, content = path.stat(), path.read_bytes()
    try:
        yield
    finally:
        if path.parent.exists():
            path.write_bytes(content)
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def tamper(runs: Runs, kind: str, chance: random.Random) -> Trial:
    """Change a bit of the source, of a finished shard or of the state."""
    weights = runs.folder / "model" / "model.safetensors"
    more: tuple[str, ...] = ()
    if kind == "source, running":
        with as_it_was(weights):
            process = runs.start(runs.out, (), "told")
            while process.is_alive() and not (runs.folder / ".out.partial").exists():
                process.join(0.002)
            process.join(chance.uniform(0, 0.5))
            what = flip(weights, chance)
            status, said = runs.end(process)
        more = ("--restart",)
    else:
        partial = runs.killed(chance)
        if kind == "source, killed":
            path, more = weights, ("--restart",)
        elif kind == "shard":
            path = chance.choice(sorted(partial.glob("*.safetensors")))
        else:
            path = chance.choice([p for p in sorted(partial.glob("state/*")) if p.is_file()])
        with as_it_was(path):
            what = flip(path, chance)
            status, said = runs.again()
    return judged(runs, kind, what, (status, said), more)


def judged(
    runs: Runs, kind: str, what: str, ended: tuple[int | None, str], more: tuple[str, ...]
) -> Trial:
    """Whether a command that met mischief ended well, and goes well without it."""
    status, said = ended
    if status == 0:  # the change was not in the way: a shard that was not finished, or all was done
        return Trial(kind, what, False, runs.same() and runs.clean())
    well = status == 2 and not runs.out.exists() and said.startswith("error: ")
    status, again = runs.again(*more)
    well = well and status == 0 and runs.same()
    return Trial(kind, what, True, runs.clean() and well, said if well else f"{said} / {again}")


def full(runs: Runs, needed: int, chance: random.Random) -> Trial:
    """Let the disk be too small: a file system in memory, or else a limit on every file."""
    share = chance.uniform(0.05, 1.2)
    room = int(needed * share)
    disk = runs.folder / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode:
        runs.out = disk / "out"
        try:
            status, said = runs.again()
            grow = ["mount", "-o", f"remount,size={8 * needed}", str(disk)]
            subprocess.run(grow, check=True, capture_output=True)
            refused = status != 0
            well = not refused or (status == 2 and not runs.out.exists())
            if refused:
                status, again = runs.again()
                well, said = well and status == 0, f"{said} {again}".strip()
            well = well and runs.same()
            left = [path.name for path in disk.iterdir() if path.suffix != ".lock"]
            return Trial("disk", f"{share:.2f} of the room", refused, well and not left, said)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
            runs.out = runs.folder / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room / 8), limits[1]))
    try:
        ended = runs.again()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return judged(runs, "disk", f"files of {room / 8:.0f} bytes", ended, ())


def two(runs: Runs, chance: random.Random) -> Trial:
    """Start the same command twice; the second a little later."""
    first = runs.start(runs.out, (), "told")
    wait = chance.uniform(0, 1)
    first.join(wait)
    second = runs.start(runs.out, (), "told too")
    ended = [runs.end(first), runs.end(second, "told too")]
    statuses = sorted(str(status) for status, _ in ended)
    said = " ".join(line for _, line in ended if line)
    well = statuses == ["0", "2"] and runs.same()
    return Trial("two", f"{wait:.2f} s apart", "2" in statuses, runs.clean() and well, said)


def do_mischief(
    runs: Runs, options: argparse.Namespace, needed: int, chance: random.Random
) -> list[Trial]:
    """Every kind in turn, and a line for each trial."""
    trials: list[Trial] = []
    for number in range(options.mischief):
        kind = KINDS[number % len(KINDS)]
        if kind == "disk":
            trials.append(full(runs, needed, chance))
        elif kind == "two":
            trials.append(two(runs, chance))
        else:
            trials.append(tamper(runs, kind, chance))
        print(f"{number + 1:>3} {trials[-1]}", flush=True)
        with contextlib.suppress(OSError):
            (runs.folder / "disk").rmdir()
    return trials


def judge_mischief(trials: list[Trial]) -> int:
    """Print how many ended well, by kind; 1 if one did not."""
    for kind in KINDS:
        of_kind = [trial for trial in trials if trial.kind == kind]
        well, refused = sum(t.well for t in of_kind), sum(t.refused for t in of_kind)
        print(f"{kind}: {len(of_kind)} trials, {refused} refused in one line, {well} ended well")
    return int(not all(trial.well for trial in trials))
