"""Writes the result folder beside its name, and renames it once it is whole.

    OUT's parent/.OUT.partial/          while the run lasts: one shard per block as it is finished
    OUT's parent/.OUT.partial/state/    what the next process needs to go on (unfinished.py)
    OUT's parent/.OUT.lock              while a process writes (lock.py)
    OUT/                                at the end, by one rename (beside.py)

A block's shard holds its new matrices and everything else of the block bit for bit as it was read.
Names, dtypes, configuration, tokenizer and licence are those of the source. The index is written
last of the model's files, and after it `run.json`, which has the checksum of every one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import safe_open
from torch import Tensor

from secateur.checkpoint.beside import STATE, Beside, Listing, listing
from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.companions import files_beside
from secateur.checkpoint.compressed_writing import NONE, Rounded, with_quantised
from secateur.checkpoint.destination import Destination
from secateur.checkpoint.durable import (
    flush,
    is_as_written,
    sha256,
    write_tensors,
    write_text,
    writing,
)
from secateur.checkpoint.lock import OutputLock
from secateur.checkpoint.packed_folder import plain_config
from secateur.checkpoint.unfinished import RunIdentity, RunState
from secateur.checkpoint.weight_files import CONFIG, INDEX
from secateur.errors import CheckpointError, SecateurError
from secateur.machine import processes
from secateur.machine.waiting import doing


class OutputFolder:
    """A result folder that appears whole or not at all, and that an interrupted run can go on with.

    Use it as a context manager: `store_block` and `state.finish_block` for every block that is not
    finished yet, then `write_rest`, `seal`, `finish`. Leaving without `finish` (an error, Ctrl-C)
    keeps finished blocks for the next run, and removes all else. Of several processes the first
    writes; the others are told what is finished, and keep `state`.

    Args:
        destination: where the result is to be.
        run: what it is made of; a run of another identity is not gone on with.
        notice: told what is gone on with, and what is kept.

    Attributes:
        out: the result folder, absolute.
        state: of the run; `state.finished` tells the blocks that need not be pruned again.
        notices: what changed since the run was begun.
        seconds_before: that earlier processes took for the blocks that they finished.

    Raises:
        OutputError: `out` exists, is or contains the source, or cannot be made.
    """

    def __init__(
        self,
        destination: Destination,
        run: RunIdentity | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.out = destination.resolved
        self.notices: tuple[str, ...] = ()
        self.seconds_before = 0.0
        run = run or RunIdentity()
        self._run = replace(run, identity={"command": destination.command, **run.identity})
        self._destination, self._notice = destination, notice
        self._beside = Beside(self.out)
        self._partial = self._beside.partial
        self.state = RunState(self._beside.state)
        self._there: Listing | None = None  # at OUT, when the run began
        self._checksums: dict[str, str] = {}  # by file
        self._parents_made: list[Path] = []  # innermost first
        self._lock = OutputLock(self.out)
        self._ours = self._finished = False
        destination.check()

    def __enter__(self) -> Self:
        try:
            if processes.first():
                self._open()
            told = self.state.finished, self.notices, self.seconds_before
            self.state.finished, self.notices, self.seconds_before = processes.from_first(
                lambda: told
            )
        except BaseException:
            self._leave()
            raise
        return self

    def _open(self) -> None:
        """Take the lock, and find out what is finished."""
        parent = self.out.parent
        self._parents_made = [path for path in (parent, *parent.parents) if not path.exists()]
        with writing(self.out):
            parent.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            self._destination.check()  # once more, now that nobody else may write here
            self._beside.settle()
            self._there = listing(self.out)
            self._beside.rehearse()
            self._partial.mkdir(exist_ok=True)
            self._continue_or_begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not processes.first():
            return
        refused = isinstance(fault, SecateurError)  # and so would be another run by the same choice
        keep = self.state.worth_keeping or (self.state.has_chosen and not refused)
        if not self._finished and keep:
            self._notice(
                f"{self.state.left} are kept in {self._partial}: the same command goes on from"
                " there, --restart gives them up"
            )
        self._leave(keep=keep)

    def _continue_or_begin(self) -> None:
        """Go on with what is there if it is of this run."""
        restart, command = self._destination.restart, self._destination.command
        earlier = None if restart else self.state.read()
        self._ours = earlier is None
        if earlier is None:
            self.state.finished = []
            self._beside.clear()
            if restart and command != "recover":
                self._beside.recovery.unlink(missing_ok=True)
            self.state.begin(self._run)
            return
        self.notices = self.state.check(earlier, self._run)
        self._verify_shards()
        self.state.go_on(self._run)
        for path in self._partial.iterdir():  # all else is written again
            if path.name not in self._checksums and path.name != STATE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._ours = True
        if self.state.finished:
            self.seconds_before = self.state.finished[-1].seconds
        self._notice(f"going on with what an earlier run has left: {self.state.left}")

    @doing("looking at what an unfinished run left")
    def _verify_shards(self) -> None:
        """Compare the shards of finished blocks with their checksums.

        Raises:
            CheckpointError: one is missing, or not what was written.
        """
        for block in self.state.finished:
            if block.shard is None:
                continue
            file, checksum = block.shard
            path = self._partial / file
            if not is_as_written(path, checksum):
                what = "not as it was written" if path.is_file() else "missing"
                raise CheckpointError(
                    f"shard {file} of an unfinished run is {what}",
                    where=self._partial,
                    hint="--restart",
                )
            self._checksums[file] = checksum

    def _leave(self, *, keep: bool = False) -> None:
        """Leave nothing behind but what is to be kept; let go of the folder."""
        if self._ours and not self._finished and not keep:
            self._beside.clear()
        if self._lock.held:
            with suppress(OSError):  # finished, or there is something in it
                self._partial.rmdir()
            self._lock.let_go()
        for folder in self._parents_made:
            with suppress(OSError):  # the result, or something else, is in it by now
                folder.rmdir()

    def store_block(
        self, model: BlockModel, index: int, changed: Mapping[str, Tensor], rounded: Rounded = NONE
    ) -> tuple[str, str] | None:
        """Put the new weights of one block on the disk.

        Args:
            model: the model the block is of.
            index: of the block.
            changed: parameter name in the model -> new value as stored. What is not named keeps
                its bytes.
            rounded: parameter name in the model -> how it is stored instead, quantised.

        Returns:
            name and SHA-256 of the block's own shard; None if the model is not streamed: `state`
            keeps the weights then, until `write_rest`.
        """
        tensors = model.stored_block(index, changed)
        if tensors is None:
            self.state.keep_weights(index, changed)
            return None
        tensors = with_quantised(tensors, rounded, model.part)
        return self._write_shard(tensors, index + 2, len(model.blocks) + 1)

    @doing("writing the result")
    def write_rest(self, model: BlockModel) -> None:
        """Write what is in no shard yet: the rest, or all of a model that is not streamed."""
        count = len(model.blocks) + 1 if model.streamed else 1
        self._write_shard(model.stored_surroundings(), 1, count)
        if model.new_config is not None:
            self.write_file(CONFIG, plain_config(model.new_config))

    def write_shard(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that are given as a shard of that name."""
        write_tensors(self._partial / file, tensors)
        self._checksums[file] = sha256(self._partial / file)

    def write_file(self, name: str, text: str) -> None:
        """Write a file that stands in for the source's of the same name."""
        write_text(self._partial / name, text)

    @doing("writing the result")
    def seal(self, index: str = INDEX, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Add the files beside the weights, then the index; the SHA-256 of every file.

        Files are known by their names relative to the folder, with slashes.

        Args:
            index: the name of the index.
            facts: what it says of itself, beside the size.
        """
        config = self._partial / CONFIG
        source, with_code = self._destination.source, self._destination.with_code
        if not config.exists():
            write_text(config, plain_config((source / CONFIG).read_text(encoding="utf-8")))
        with writing(self._partial):
            beside = files_beside(source, with_code=with_code)
            for name in beside:
                if not (self._partial / name).exists():
                    (self._partial / name).parent.mkdir(exist_ok=True, parents=True)
                    shutil.copyfile(source / name, self._partial / name)
                    flush(self._partial / name)
        if self._checksums:
            self._write_index(index, facts or {})
        written = sorted(path for path in self._partial.iterdir() if path.is_file())
        for path in (*written, *(self._partial / name for name in beside)):
            relative = path.relative_to(self._partial).as_posix()
            if relative not in self._checksums:
                self._checksums[relative] = sha256(path)
        return dict(sorted(self._checksums.items()))

    def write_folder(self, name: str, save: Callable[[Path], None]) -> None:
        """Let something else write a folder within the result; its files have no checksum."""
        folder = self._partial / name
        with writing(folder):
            save(folder)
            for path in folder.rglob("*"):
                flush(path)

    def finish(self, record: str | None) -> None:
        """Write `run.json`, if there is one, and give the folder its name; the state goes last.

        Raises:
            OutputError: it cannot be written, or something else is at its name by now.
        """
        if record is not None:
            write_text(self._partial / "run.json", record)
        with writing(self.out):
            self._beside.give_name(self._there)
        self._finished = True

    def _write_shard(self, tensors: dict[str, Tensor], number: int, count: int) -> tuple[str, str]:
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        self.write_shard(file, tensors)
        return file, self._checksums[file]

    def _write_index(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write which of the shards holds each tensor, as their own headers say."""
        weight_map, total = {}, 0
        for file in sorted(self._checksums):
            with safe_open(self._partial / file, framework="pt") as shard:
                for tensor in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    weight_map[tensor] = file
                    total += shard.get_tensor(tensor).nbytes
        index = {"metadata": {**facts, "total_size": total}, "weight_map": weight_map}
        write_text(self._partial / name, json.dumps(index, indent=2, sort_keys=True) + "\n")
