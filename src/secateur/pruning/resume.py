"""Going on with an unfinished run: what must be the same, what is put back, what is kept.

A run goes on if it would do the same again: the same recipe, weights, calibration and held-out
tokens, precision and kind of device. What it is called and where it lies does not matter. Other
versions, machines and numbers of threads are allowed, with a notice: the bits may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.blocks.store import put_back
from secateur.checkpoint import BlockModel, Destination, OutputFolder, RunIdentity
from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.machine.facts import machine, versions
from secateur.machine.waiting import doing
from secateur.pruning.dense_passes import ReadyRun
from secateur.pruning.prepare import Prepared
from secateur.quantization import RoundedMatrix
from secateur.recipe import Recipe
from secateur.recipe.differences import deciding
from secateur.record import BlockRecord


def open_output(prepared: Prepared, notice: Callable[[str], None]) -> OutputFolder:
    """The result folder of a run, to be entered: it goes on with an unfinished run, or begins.

    Raises:
        OutputError: it cannot be there.
        RecipeError: the processes of the run are to do different things.
    """
    facts = identity(prepared)
    if facts != processes.from_first(lambda: facts):
        raise RecipeError(
            f"process {processes.number()} has another recipe, model or text than process 0",
            wanted="the same command and files on every host",
        )
    recipe = prepared.recipe
    assert recipe.out is not None
    assert prepared.folder is not None
    destination = Destination(
        Path(recipe.out),
        prepared.folder,
        overwrite=recipe.overwrite,
        restart=recipe.restart,
        with_code=recipe.trust_remote_code,
    )
    run = RunIdentity(facts, circumstances(prepared), prepared.source.watch())
    return OutputFolder(destination, run, notice)


@doing("looking at the source's weights")
def identity(prepared: Prepared) -> dict[str, Any]:
    """What decides every bit of the result, by a name that a person knows."""
    source, calibration = prepared.source, prepared.calibration
    heldout = [text.protocol.sha256 for text in prepared.heldout]
    content: dict[str, Any] = {
        "calibration tokens": None if calibration is None else calibration.protocol.sha256,
        "held-out tokens": ", ".join(heldout) or None,
        "precision": str(source.dtype).removeprefix("torch."),
    }
    if prepared.folder is not None:
        content["source weights"] = source.fingerprint()
    return {
        **deciding(Recipe, prepared.recipe.spelled_out(), content),
        "device": source.device.type,
        "processes": processes.count(),
    }


def circumstances(prepared: Prepared) -> dict[str, Any]:
    """What the bits may depend on beside it."""
    return {**versions(), **machine(prepared.source.device)}


@doing("going on after the last finished block")
def go_on(output: OutputFolder, run: ReadyRun) -> None:
    """Put everything where it was after the last block that an earlier process finished.

    Args:
        output: has what was kept.
        run: its streams, and the weights of a model that was loaded whole, are put there.

    Raises:
        CheckpointError: what was kept cannot be read.
    """
    source, streams = run.prepared.source, run.streams
    if not run.done:
        return
    hidden = output.state.restore_streams({name: s.hidden for name, s in streams.items()})
    for name, stream in streams.items():
        stream.hidden = hidden[name]
    if not source.streamed:
        for index in range(run.done):
            changed = output.state.kept_weights(index)
            with source.open_block(index) as block:
                put_back(block, source.blocks.prefix(index), changed)
            source.stored_block(index, changed)


@dataclass(frozen=True)
class FinishedNow:
    """A block that has just been pruned, and what the next process needs to go on after it.

    Attributes:
        record: of the block.
        changed: its new weights, by parameter name in the model, as they are stored.
        rounded: what of them is stored quantised, by parameter name in the model.
        hidden: the streams by name, as they leave the block: their hidden states by batch.
        seconds: that the run has taken so far, earlier processes included.
    """

    record: BlockRecord
    changed: Mapping[str, Tensor]
    rounded: Mapping[str, RoundedMatrix]
    hidden: Mapping[str, list[Tensor]]
    seconds: float


def keep(output: OutputFolder, source: BlockModel, block: FinishedNow) -> None:
    """Make a block finished: whatever happens now, it need not be pruned again.

    Args:
        output: takes the block.
        source: the model that is pruned.
        block: what is kept of it.

    Raises:
        OutputError: it cannot be written.
    """
    shard, index = None, block.record.index
    if processes.first():  # the weights are the same in all processes
        shard = output.store_block(source, index, block.changed, block.rounded)
    output.state.finish_block(
        index, block.record.model_dump(mode="json"), shard, block.hidden, block.seconds
    )
