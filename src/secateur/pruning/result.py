"""Where the blocks of a run go as they are finished: into a result folder, or nowhere.

`open_result` gives the one that fits. The pipeline hands either of them every block and, at the
end, the record, so that one loop serves pruning into a folder and measuring alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from secateur.blocks.block_result import BlockResult
from secateur.checkpoint import OutputFolder
from secateur.checkpoint.background import Behind
from secateur.checkpoint.proved import damaged
from secateur.checkpoint.weight_files import CONFIG
from secateur.machine import processes
from secateur.machine.scratch import scratch_folder
from secateur.machine.waiting import doing
from secateur.pruning.dense_passes import ReadyRun
from secateur.pruning.prepare import Prepared
from secateur.pruning.quantise import quantised_config
from secateur.pruning.resume import FinishedNow, go_on, keep, open_output
from secateur.record import BlockRecord, RunRecord


class Result(ABC):
    """Takes the blocks of a run, and its record at the end.

    Attributes:
        scratch: folder for files of the run.
        outlasts: whether `scratch` is there again for the next process if this one is killed.
        finished: the records of the blocks that earlier processes finished.
        notices: what changed since the run was begun.
        seconds_before: that earlier processes took for the blocks that they finished.
    """

    scratch: Path
    outlasts: bool
    finished: tuple[BlockRecord, ...] = ()
    notices: tuple[str, ...] = ()
    seconds_before: float = 0.0

    @abstractmethod
    def go_on(self, run: ReadyRun) -> None:
        """Put everything where earlier processes left it.

        Raises:
            CheckpointError: what was kept cannot be read.
        """

    @abstractmethod
    def take(self, run: ReadyRun, block: BlockResult, record: BlockRecord) -> None:
        """Take a block that has just been pruned.

        Raises:
            OutputError: the block before it cannot be written.
        """

    @abstractmethod
    def complete(self, run: ReadyRun) -> Mapping[str, str]:
        """Take what is in no block; the SHA-256 of every file of the result by name.

        Raises:
            OutputError: it, or a block before it, cannot be written.
        """

    @abstractmethod
    def finish(self, record: RunRecord) -> None:
        """Take the record of the run, which is its end.

        Raises:
            OutputError: it cannot be written.
        """


class Nowhere(Result):
    """Keeps nothing: what is in memory stays pruned, and the record is all there is.

    Args:
        scratch: folder for files of this process.
    """

    outlasts = False

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def go_on(self, run: ReadyRun) -> None:
        """There is no earlier process."""

    def take(self, run: ReadyRun, block: BlockResult, record: BlockRecord) -> None:
        """Let it go."""

    def complete(self, run: ReadyRun) -> Mapping[str, str]:
        """There are no files."""
        return {}

    def finish(self, record: RunRecord) -> None:
        """Let it go: the caller has it."""


class IntoFolder(Result):
    """Writes each block while the next one is pruned, so that a crash costs one block.

    Args:
        output: the result folder, entered.
        behind: writes in the background, entered.
    """

    outlasts = True

    def __init__(self, output: OutputFolder, behind: Behind) -> None:
        self._output, self._behind = output, behind
        self.scratch = output.state.folder
        try:
            self.finished = tuple(
                BlockRecord.model_validate(block.record) for block in output.state.finished
            )
        except ValidationError as fault:  # another version's
            raise damaged("records", self.scratch, fault.errors()[0]["msg"]) from fault
        self.notices, self.seconds_before = output.notices, output.seconds_before

    def go_on(self, run: ReadyRun) -> None:
        """Put streams and weights where the last finished block left them."""
        go_on(self._output, run)

    def take(self, run: ReadyRun, block: BlockResult, record: BlockRecord) -> None:
        """Keep the block, in the background."""
        finished = FinishedNow(
            record,
            dict(block.changed),
            dict(block.rounded),
            {name: stream.hidden for name, stream in run.streams.items()},
            self.seconds_before + run.seconds,
        )
        self._behind.do(partial(keep, self._output, run.prepared.source, finished))

    def complete(self, run: ReadyRun) -> Mapping[str, str]:
        """Write everything but the record, once all blocks are written."""
        with doing("writing the last blocks"):
            self._behind.wait()
        if not processes.first():
            return {}
        self._output.write_rest(run.prepared.source)
        prepared = run.prepared
        assert prepared.folder is not None  # of a model on the disk
        config = quantised_config(prepared.plan, prepared.source, prepared.folder)
        if config is not None:
            self._output.write_file(CONFIG, config)
        return self._output.seal()

    def finish(self, record: RunRecord) -> None:
        """Write the record, and give the folder its name."""
        if processes.first():
            self._output.finish(record.model_dump_json(indent=2) + "\n")


@contextmanager
def open_result(prepared: Prepared, notice: Callable[[str], None]) -> Iterator[Result]:
    """Where the blocks of a run go.

    Args:
        prepared: the run; a model on disk whose recipe has an `out` goes there.
        notice: told what is gone on with, and what is kept.

    Raises:
        OutputError: the result cannot be there.
        RecipeError: the processes of the run are to do different things, or an unfinished run that
            is there is another one.
    """
    if prepared.folder is None or prepared.recipe.out is None:
        with scratch_folder() as scratch:
            yield Nowhere(scratch)
        return
    with open_output(prepared, notice) as output, Behind() as behind:
        yield IntoFolder(output, behind)
