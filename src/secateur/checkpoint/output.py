"""The result folder: written beside its name, renamed once it is whole.

    OUT's parent/.OUT.partial/          while the run lasts: one shard per block as it is finished
    OUT's parent/.OUT.partial/state/    what the next process needs to go on (state.py)
    OUT/                                at the end, by one rename

A block's shard holds its new matrices and everything else of the block bit for bit as it was read.
Names, dtypes, configuration, tokenizer and licence are those of the source. The index is written
last of the model's files, and after it `run.json`, which has the checksum of every one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import safe_open
from torch import Tensor

from secateur.checkpoint.destination import STATE, check_output, files_beside
from secateur.checkpoint.durable import (
    UNFINISHED,
    flush,
    sha256,
    write_tensors,
    write_text,
    writing,
)
from secateur.checkpoint.read import CONFIG, INDEX
from secateur.checkpoint.resident import ResidentModel, unrounded
from secateur.checkpoint.streamed import StreamedModel
from secateur.checkpoint.unfinished import RunState
from secateur.errors import CheckpointError, OutputError
from secateur.machine import processes
from secateur.packing.layout import is_packed, plain_config


class OutputFolder:
    """A result folder that appears whole or not at all, and that an interrupted run can go on with.

    Use it as a context manager: `write_block` and `state.finish_block` for every block that is not
    finished yet, then `write_surroundings` or `write_whole`, `seal`, `finish`. Leaving without
    `finish` (an error, Ctrl-C) keeps finished blocks for the next run, and removes all else. Of
    several processes the first writes; the others are told what is finished, and keep `state`.

    Args:
        out: where the result is to be; its parent is made if need be.
        source: folder of the model that is pruned, for the files beside the weights.
        overwrite: replace `out` if it exists.
        restart: give up what an earlier run has finished.
        with_code: copy the code that lies beside the weights too.
        identity, circumstances: as for `RunState.begin`.
        notice: told what is gone on with, and what is kept.

    Attributes:
        state: of the run; `state.finished` tells the blocks that need not be pruned again.
        notices: what changed since the run was begun.
        seconds_before: that earlier processes took for the blocks that they finished.

    Raises:
        OutputError: `out` exists, is or contains the source, or cannot be made.
    """

    def __init__(
        self,
        out: Path,
        source: Path,
        *,
        overwrite: bool = False,
        restart: bool = False,
        with_code: bool = False,
        identity: Mapping[str, Any] | None = None,
        circumstances: Mapping[str, Any] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.out = out.expanduser().resolve()  # a link stays, what it leads to is replaced
        self.source = source
        self.notices: tuple[str, ...] = ()
        self.seconds_before = 0.0
        self._restart, self._with_code = restart, with_code
        self._identity, self._circumstances = dict(identity or {}), dict(circumstances or {})
        self._notice = notice
        self._partial = self.out.parent / f".{self.out.name}.partial"
        self.state = RunState(self._partial / STATE)
        self._checksums: dict[str, str] = {}  # by file
        self._parents_made: list[Path] = []  # innermost first
        self._lock: int | None = None
        self._ours = self._finished = False
        check_output(self.out, source, overwrite=overwrite)

    def __enter__(self) -> Self:
        try:
            if processes.first():
                self._open()
            found = self.state.finished, self.notices, self.seconds_before
            self.state.finished, self.notices, self.seconds_before = processes.from_first(
                lambda: found
            )
        except BaseException:
            self._leave()
            raise
        return self

    def _open(self) -> None:
        """Take the place, and find out what is finished."""
        parent = self.out.parent
        self._parents_made = [path for path in (parent, *parent.parents) if not path.exists()]
        with writing(self.out):
            self._partial.mkdir(parents=True, exist_ok=True)
            self._take()
            self._continue_or_begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not processes.first():
            return
        if not self._finished and self.state.worth_keeping:
            done = len(self.state.finished)
            self._notice(
                f"{f'{done} finished blocks' if done else 'the gradients'} are kept in"
                f" {self._partial}: the same command goes on from there, --restart gives them up"
            )
        self._leave()

    def _take(self) -> None:
        """Hold the folder until the end, or until the process is gone."""
        self._lock = os.open(self._partial, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            os.close(self._lock)
            self._lock = None
            raise OutputError(
                "another run is writing here", where=self._partial, hint="another --out"
            ) from fault

    def _continue_or_begin(self) -> None:
        """Go on with what is there if it is of this run."""
        found = None if self._restart else self.state.read()
        self._ours = found is None
        if found is None:
            self.state.finished = []
            for path in self._partial.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.state.begin(self._identity, self._circumstances)
            return
        self.notices = self.state.check(found, self._identity, self._circumstances)
        for path in self._partial.glob(f"*{UNFINISHED}"):
            path.unlink()
        for block in self.state.finished:
            if block.shard is not None:
                file, checksum = block.shard
                if not (self._partial / file).is_file():
                    raise CheckpointError(
                        f"shard {file} of an unfinished run is missing",
                        where=self._partial,
                        hint="--restart",
                    )
                self._checksums[file] = checksum
        self._ours = True
        if done := len(self.state.finished):
            self.seconds_before = self.state.finished[-1].seconds
        self._notice(f"{done} blocks were finished by an earlier run: going on after them")

    def _leave(self) -> None:
        """Leave nothing behind that is of no use; let go of the folder."""
        if self._ours and not self._finished and not self.state.worth_keeping:
            shutil.rmtree(self._partial, ignore_errors=True)
        if self._lock is not None:
            with suppress(OSError):  # finished, or there is something in it
                self._partial.rmdir()
            os.close(self._lock)
            self._lock = None
        for folder in self._parents_made:
            with suppress(OSError):  # the result, or something else, is in it by now
                folder.rmdir()

    def write_block(
        self, model: StreamedModel, index: int, changed: Mapping[str, Tensor]
    ) -> tuple[str, str]:
        """Write one block of a streamed model as a shard of its own; its name and SHA-256.

        Args:
            model: the model the block is of.
            index: which block.
            changed: parameter name in the model -> new value as stored. What is not named keeps
                its bytes.
        """
        tensors = model.checkpoint.load(model.block_tensors(index))
        for name, value in changed.items():
            for stored, new in model.naming.part(name, value).items():
                old = tensors[stored]
                tensors[stored] = unrounded(new.to("cpu", old.dtype), old, model.dtype).contiguous()
        return self._write_shard(tensors, index + 2, len(model.blocks) + 1)

    def write_surroundings(self, model: StreamedModel) -> None:
        """Write everything of a streamed model that is in no block, bit for bit as it was."""
        inside = {
            stored for index in range(len(model.blocks)) for stored in model.block_tensors(index)
        }
        outside = [name for name in model.checkpoint.names if name not in inside]
        self._write_shard(model.checkpoint.load(outside), 1, len(model.blocks) + 1)

    def write_shard(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that are given as a shard of that name."""
        write_tensors(self._partial / file, tensors)
        self._checksums[file] = sha256(self._partial / file)

    def write_file(self, name: str, text: str) -> None:
        """Write a file that stands in for the source's of the same name."""
        write_text(self._partial / name, text)

    def write_whole(self, model: ResidentModel) -> None:
        """Write a model that was loaded whole, under the names that the hub uses."""
        with writing(self._partial):
            model.model.save_pretrained(self._partial, safe_serialization=True)
            for path in self._files():
                flush(path)

    def seal(self, index: str = INDEX, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Add the files beside the weights, then the index; the SHA-256 of every file by name.

        Args:
            index: the name of the index.
            facts: what it says of itself, beside the size.
        """
        config = self._partial / CONFIG
        if is_packed(self.source) and not config.exists():
            write_text(config, plain_config((self.source / CONFIG).read_text(encoding="utf-8")))
        with writing(self._partial):
            for path in files_beside(self.source, with_code=self._with_code):
                if not (self._partial / path.name).exists():
                    shutil.copyfile(path, self._partial / path.name)
                    flush(self._partial / path.name)
        if self._checksums:
            self._write_index(index, facts or {})
        for path in self._files():
            if path.name not in self._checksums:
                self._checksums[path.name] = sha256(path)
        return dict(sorted(self._checksums.items()))

    def write_folder(self, name: str, save: Callable[[Path], None]) -> None:
        """Let something else write a folder within the result; its files have no checksum."""
        folder = self._partial / name
        with writing(folder):
            save(folder)
            for path in folder.rglob("*"):
                flush(path)

    def finish(self, record: str | None) -> None:
        """Write `run.json`, if there is one, and give the folder its name; the state goes last."""
        if record is not None:
            write_text(self._partial / "run.json", record)
        retired = self.out.parent / f".{self.out.name}.replaced"
        with writing(self.out):
            flush(self._partial)
            if self.out.exists():
                shutil.rmtree(retired, ignore_errors=True)
                self.out.rename(retired)
            try:
                self._partial.rename(self.out)
            except BaseException:
                if retired.exists():
                    retired.rename(self.out)
                raise
            self._finished = True
            flush(self.out.parent)
        RunState(self.out / STATE).remove()
        shutil.rmtree(retired, ignore_errors=True)

    def _write_shard(self, tensors: dict[str, Tensor], number: int, count: int) -> tuple[str, str]:
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        self.write_shard(file, tensors)
        return file, self._checksums[file]

    def _write_index(self, name: str, facts: Mapping[str, Any]) -> None:
        """Which of the shards holds each tensor, as their own headers say."""
        weight_map, total = {}, 0
        for file in sorted(self._checksums):
            with safe_open(self._partial / file, framework="pt") as shard:
                for tensor in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    weight_map[tensor] = file
                    total += shard.get_tensor(tensor).nbytes
        index = {"metadata": {**facts, "total_size": total}, "weight_map": weight_map}
        write_text(self._partial / name, json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _files(self) -> list[Path]:
        return sorted(path for path in self._partial.iterdir() if path.is_file())
