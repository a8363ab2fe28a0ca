"""What tells a model from another: a quick fingerprint, and every byte as a run reads it.

    fingerprint    SHA-256 of  the configuration, as bytes
                               of every tensor its name, shape and dtype
                                       and `SAMPLED` stretches of its bytes, evenly spaced
    SourceFiles    size, times and header of every file, when the model is opened
                   SHA-256 of every tensor, when it is read for the first time

The fingerprint takes seconds, and one changed weight of a large matrix may go unnoticed: it says
at the start whether this is the model of an earlier run. `SourceFiles` notices that weight: files
are looked at again when a run goes on and when it ends, and what is read twice must be the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.checkpoint.weight_files import CONFIG
from secateur.errors import CheckpointError
from secateur.machine.limits import MOST_HEADER_BYTES
from secateur.machine.waiting import each

SAMPLED = 16
"""Stretches of each tensor that are hashed: enough to meet every part of a matrix that was changed
as a whole, few enough for a model of 70 billion weights to take seconds."""
STRETCH = 4096
"""Bytes in each stretch: a page of memory, which is what the disk is read by."""
WEIGHTS = ".safetensors"
_AGAIN = "beginning again (prune --restart), once the files stay as they are"


def fingerprint(config: bytes, tensors: Iterable[tuple[str, Sequence[Tensor]]]) -> str:
    """The fingerprint of a model, hexadecimal.

    Args:
        config: its configuration.
        tensors: name and parts of every tensor, in an order that is always the same. A tensor that
            is packed has several parts, any other is its own. They may lie on any device.
    """
    digest = hashlib.sha256(config)
    for name, parts in tensors:
        heads: list[Any] = [(tuple(part.shape), part.dtype) for part in parts]
        digest.update(f"{name} {heads}".encode())
        for part in parts:
            digest.update(_sample(part).numpy().tobytes())
    return digest.hexdigest()


def every_byte(files: SourceFiles) -> str:
    """The fingerprint of a model that sees every byte, hexadecimal; what was not read is read now.

    Raises:
        CheckpointError: a file is not what it was.
    """
    files.read_all()
    sums = sorted(files.sums().items())
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def sha256_of(parts: Iterable[Tensor]) -> str:
    """The SHA-256 of the bytes of tensors, end to end, hexadecimal. They may lie on any device."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_bytes(part.cpu()).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Look:
    """What can be seen of a file without reading it: its size, its times, and how it begins.

    Attributes:
        size: bytes.
        changed: when its bytes were, in nanoseconds.
        inode, touched: its number on the file system, and when anything of it was changed; a copy
            has others.
        head: SHA-256 of the header of a safetensors file, and of all of any other.
    """

    size: int
    changed: int
    inode: int
    touched: int
    head: str

    @classmethod
    def at(cls, path: Path) -> Look:
        """Look at a file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with path.open("rb") as file:
                length = MOST_HEADER_BYTES
                if path.suffix == WEIGHTS:
                    length = min(length, int.from_bytes(file.read(8), "little"))
                head = hashlib.sha256(file.read(length)).hexdigest()
            told = path.stat()
        except OSError as fault:
            raise CheckpointError(
                f"{path.name} cannot be read any more ({fault.strerror})",
                where=path.parent,
                hint=_AGAIN,
            ) from fault
        return cls(told.st_size, told.st_mtime_ns, told.st_ino, told.st_ctime_ns, head)

    def is_untouched(self, path: Path) -> bool:
        """Whether a file has the size, times and number that it had at this look."""
        told = path.stat()
        now = (told.st_size, told.st_mtime_ns, told.st_ino, told.st_ctime_ns)
        return now == (self.size, self.changed, self.inode, self.touched)

    def same_as(self, other: Look) -> bool:
        """Whether nothing says that it was changed; a copy that kept its times is the same."""
        if (self.size, self.changed, self.head) != (other.size, other.changed, other.head):
            return False
        return self.inode != other.inode or self.touched == other.touched


class SourceFiles:
    """The files of one model: what they are at the start, and whether they still are.

    Bytes are hashed once `watch` was called; whoever reads tensors tells `saw`.

    Args:
        files: tensor name -> the file it lies in.
        beside: other files that matter, such as the configuration.
        read: gives the stored parts of a tensor, by its name.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        beside: Iterable[Path],
        read: Callable[[str], Sequence[Tensor]],
    ) -> None:
        self._files, self._read = dict(files), read
        self._began = {path: Look.at(path) for path in {*files.values(), *beside}}
        self._digests: dict[str, str] = {}
        self._hashed: set[str] = set()  # by this process
        self._told: set[str] = set()
        self._guard = threading.Lock()  # blocks are read ahead, and written behind
        self.watched = False

    def watch(self) -> None:
        """Hash from now on what is read."""
        self.watched = True

    def read_all(self) -> None:
        """Hash every tensor that was not read yet.

        Raises:
            CheckpointError: one is not what it was.
        """
        for name in each("hashing the model", [n for n in self._files if n not in self._digests]):
            self.saw(name, self._read(name))

    def saw(self, name: str, parts: Sequence[Tensor]) -> None:
        """Take the stored parts of a tensor that has just been read.

        It is hashed again only if its file was touched since: hashing takes longer than reading.

        Raises:
            CheckpointError: they are not what they were when it was read before.
        """
        file = self._files[name]
        if name in self._hashed and self._began[file].is_untouched(file):
            return
        digest = sha256_of(parts)
        with self._guard:
            before = self._digests.setdefault(name, digest)
            self._hashed.add(name)
        if before != digest:
            raise self._changed(name)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 by tensor name of all that was read."""
        with self._guard:
            return dict(self._digests)

    def expect(self, digests: Mapping[str, str]) -> None:
        """Take over what another run has read of this model: what is read now must be the same.

        Args:
            digests: what its `digests` gave.

        Raises:
            CheckpointError: a tensor was read already, and is another.
        """
        for name in sorted(self._files.keys() & digests.keys()):
            with self._guard:
                known = self._digests.setdefault(name, digests[name])
            if known != digests[name]:
                raise self._changed(name)

    def check(self) -> None:
        """Prove that the files are what they were when the model was opened.

        Raises:
            CheckpointError: one is not.
        """
        for path, before in self._began.items():
            if not Look.at(path).same_as(before):
                raise CheckpointError(
                    f"{path.name} was changed while the run lasted", where=path.parent, hint=_AGAIN
                )

    def looks(self) -> dict[str, list[int | str]]:
        """What `go_on` of the next process is given: every file by its name."""
        return {
            path.name: [look.size, look.changed, look.inode, look.touched, look.head]
            for path, look in self._began.items()
        }

    def news(self) -> dict[str, str]:
        """SHA-256 by tensor name of what was read since this was last asked for."""
        with self._guard:
            new = {name: value for name, value in self._digests.items() if name not in self._told}
            self._told |= new.keys()
        return new

    def go_on(self, looks: Mapping[str, Sequence[Any]], digests: Mapping[str, str]) -> None:
        """Take over what an earlier process saw, and prove that the files are still the same.

        A file of other times must have been read whole then, and is read and compared now.

        Args:
            looks: what its `looks` gave.
            digests: all that its `news` gave.

        Raises:
            CheckpointError: a file is not what it was, or nothing proves that it is.
        """
        self.expect(digests)
        self._told |= digests.keys()
        for path, now in self._began.items():
            before = Look(*looks[path.name]) if path.name in looks else None
            if before is not None and now.same_as(before):
                continue
            inside = [name for name, file in self._files.items() if file == path]
            proved = bool(inside) or path.suffix != WEIGHTS
            if before is None or before.head != now.head or before.size != now.size:
                proved = False
            if not proved or not all(name in digests for name in inside):
                raise CheckpointError(
                    f"{path.name} was changed after the run was begun",
                    where=path.parent,
                    wanted="the files as they were, or a copy that kept their times",
                    hint=_AGAIN,
                )
            for name in inside:
                self.saw(name, self._read(name))

    def _changed(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"tensor {name!r} is not what it was when it was first read",
            where=self._files[name],
            wanted="files that nobody changes while a run lasts",
            hint=_AGAIN,
        )

    def sums(self) -> dict[str, str]:
        """One SHA-256 of every file that makes the model, by name; none unless all was read.

        Of a file of weights it is that of the lines "SHA-256 NAME" of the file's header, named
        "header", and then of its tensors, in the order of their names; of config.json its own.
        """
        if not self._files.keys() <= self._digests.keys():
            return {}
        lines: dict[Path, list[str]] = {}
        for name, path in sorted(self._files.items()):
            start = [f"{self._began[path].head} header\n"]
            lines.setdefault(path, start).append(f"{self._digests[name]} {name}\n")
        sums = {path.name: hashlib.sha256("".join(t).encode()) for path, t in lines.items()}
        told = {name: digest.hexdigest() for name, digest in sums.items()}
        told |= {path.name: look.head for path, look in self._began.items() if path.name == CONFIG}
        return dict(sorted(told.items()))


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: uint8 [bytes]."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _sample(tensor: Tensor) -> Tensor:
    """The stretches of one tensor, end to end: uint8 [bytes], on the CPU."""
    stored = _bytes(tensor)
    step = max(STRETCH, len(stored) // SAMPLED)
    stretches = [stored[start : start + STRETCH] for start in range(0, len(stored), step)]
    return torch.cat(stretches or [stored]).cpu()
