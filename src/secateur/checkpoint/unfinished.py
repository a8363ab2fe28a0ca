"""Keeps what an unfinished run leaves, so that the next goes on after its last finished block.

    OUT's parent/.OUT.partial/state/
        identity.json               what the run is made of: recipe, source, calibration, precision
        block-00003.json            block 3 is finished: its record, the checksum of its shard, and
                                    those of the source's tensors that were read for it
        stream-00004.safetensors    the hidden states that enter block 4: one such file at a time
        weights-00003.safetensors   new weights of a model that was loaded whole, until it is saved
        gradients/                  full-model gradients, once they are whole
        removed.json                which structures go, once they are chosen
        dense.safetensors           held-out hidden states that leave the dense model

Of several processes (`processes.py`) each keeps the hidden states of its own sequences, those of
process 1 in stream-00004-rank1.safetensors and so on, and the first all else.

A block is finished when `block-N.json` is there. It is written after everything that it stands for,
so a run can be killed at any moment: the block it was in is pruned again, the others are not.
Every file here proves itself by a checksum (proved.py), shards by that in `block-N.json`.
Why hidden states are kept and not computed again: docs/decisions/0007.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.durable import UNFINISHED, flush
from secateur.checkpoint.fingerprint import SourceFiles
from secateur.checkpoint.proved import (
    damaged,
    read_batches,
    read_facts,
    read_proved,
    write_batches,
    write_facts,
    write_proved,
)
from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.recipe.differences import differences

IDENTITY = "identity.json"
CHOSEN = "removed.json"
DENSE = "dense.safetensors"


@dataclass(frozen=True)
class RunIdentity:
    """The facts that a run is made of, by names that a person knows.

    Attributes:
        identity: what must be the same for another process to go on with it.
        circumstances: what should be, since the bits may depend on it.
        files: of the model that is read; None if nobody watches them.
    """

    identity: Mapping[str, Any] = field(default_factory=dict)
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    files: SourceFiles | None = None


@dataclass(frozen=True)
class FinishedBlock:
    """One block that an earlier process finished.

    Attributes:
        record: what the caller gave to `RunState.finish_block`.
        shard: name and SHA-256 of the file that holds it in the result, if there is one yet.
        seconds: that the run had taken when the block was finished.
    """

    record: dict[str, Any]
    shard: tuple[str, str] | None
    seconds: float


class RunState:
    """The state of one unfinished run on disk.

    Args:
        folder: of the state; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: list[FinishedBlock] = []
        self._files: SourceFiles | None = None
        self._looks: dict[str, Any] = {}
        self._digests: dict[str, str] = {}

    @property
    def worth_keeping(self) -> bool:
        """Whether there is work in it that the next process can go on with."""
        return bool(self.finished) or self.gradients.is_dir()

    @property
    def has_chosen(self) -> bool:
        """Whether the structures that go are chosen, which may have taken long."""
        return (self.folder / CHOSEN).is_file()

    @property
    def left(self) -> str:
        """What the next process can go on with, in words."""
        if done := len(self.finished):
            return f"{done} finished blocks"
        return "the gradients" if self.worth_keeping else "the structures that were chosen"

    @property
    def gradients(self) -> Path:
        """The folder of full-model gradients while the run lasts."""
        return self.folder / "gradients"

    def begin(self, run: RunIdentity) -> None:
        """Start with nothing finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = run.files
        looks = {} if run.files is None else run.files.looks()
        facts = {"identity": run.identity, "circumstances": run.circumstances, "files": looks}
        write_facts(self.folder / IDENTITY, facts)

    def read(self) -> RunIdentity | None:
        """Find out what is finished.

        Returns:
            what was given to `begin`, or None if there is no work to go on with.

        Raises:
            CheckpointError: there is, but it is not what was written.
        """
        self.finished = []
        try:
            facts = read_facts(self.folder / IDENTITY)
            run = RunIdentity(dict(facts["identity"]), dict(facts["circumstances"]))
            self._looks = dict(facts["files"])
            while (path := self._block(len(self.finished))).is_file():
                block = read_facts(path)
                record, shard = dict(block["record"]), block["shard"]
                shard = shard and (shard[0], shard[1])
                self.finished.append(FinishedBlock(record, shard, float(block["seconds"])))
                self._digests |= block["source"]
        except FileNotFoundError as fault:
            if any(self.folder.glob("block-*.json")):
                raise damaged("state", self.folder, f"no {IDENTITY}") from fault
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise damaged("state", self.folder, fault) from fault
        return run if self.worth_keeping or self.has_chosen else None

    def go_on(self, run: RunIdentity) -> None:
        """Prove that the source is what it was, and remove what a killed process left half done.

        Raises:
            CheckpointError: the source is another by now.
        """
        self._files = run.files
        if run.files is not None:
            run.files.go_on(self._looks, self._digests)
        needed = self._stream(len(self.finished))
        left_over = ("*" + UNFINISHED, ".tmp*", "inputs-*", "stream-*")
        for path in {path for pattern in left_over for path in self.folder.glob(pattern)}:
            if not path.match(needed.stem + "*.safetensors"):  # of whichever process
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def check(self, earlier: RunIdentity, run: RunIdentity) -> tuple[str, ...]:
        """Prove that a run may go on with what an earlier one, as `read` gave it, has finished.

        Returns:
            notices about circumstances that have changed.

        Raises:
            RecipeError: it is another run; says what differs.
        """
        if differing := differences(run.identity, earlier.identity):
            raise RecipeError(
                f"an unfinished run with {self.left} had {' | '.join(map(str, differing))}",
                where=self.folder.parent,
                hint="the same command as before to continue it, --restart to give it up, or"
                " another --out",
            )
        return tuple(
            f"the run was begun with {fact}: its bits may differ from an uninterrupted one's"
            for fact in differences(run.circumstances, earlier.circumstances)
        )

    def finish_block(
        self,
        index: int,
        record: Mapping[str, Any],
        shard: tuple[str, str] | None,
        streams: Mapping[str, list[Tensor]],
        seconds: float,
    ) -> None:
        """Make block `index` count as finished.

        Args:
            index: the blocks below it are finished.
            record: comes back as it is after a crash.
            shard: name and SHA-256 of its file in the result.
            streams: name -> hidden states by batch that enter the next block.
            seconds: that the run has taken so far.
        """
        write_batches(self._stream(index + 1), streams)
        source = {} if self._files is None else self._files.news()
        facts = {"record": record, "shard": shard, "seconds": seconds, "source": source}
        flush(self.folder)
        processes.wait()
        if processes.first():
            write_facts(self._block(index), facts)
            flush(self.folder)
        processes.wait()
        self._stream(index).unlink(missing_ok=True)
        self.finished.append(FinishedBlock(dict(record), shard, seconds))

    def restore_streams(self, streams: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The hidden states that enter the first block that is not finished.

        Args:
            streams: hidden states of the same shapes, on the devices where they are to be.

        Raises:
            CheckpointError: they are not there, or not of these shapes.
        """
        path = self._stream(len(self.finished))
        return read_batches(path, streams)

    def keep_weights(self, index: int, changed: Mapping[str, Tensor]) -> None:
        """Keep the new weights of a block that is in no shard yet."""
        write_proved(self._weights(index), changed)

    def kept_weights(self, index: int) -> dict[str, Tensor]:
        """The new weights of a finished block, as `keep_weights` was given them.

        Raises:
            CheckpointError: they are not there, or not what was written.
        """
        return read_proved(self._weights(index))[0]

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.json"

    def _stream(self, index: int) -> Path:
        return processes.own_file(self.folder / f"stream-{index:05d}.safetensors")

    def _weights(self, index: int) -> Path:
        return self.folder / f"weights-{index:05d}.safetensors"
