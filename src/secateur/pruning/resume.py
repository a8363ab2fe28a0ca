"""Going on with an unfinished run: what must be the same, what is put back, what is kept.

A run goes on if it would do the same again: the same recipe, weights, calibration and held-out
tokens, precision and kind of device. What it is called and where it lies does not matter. Other
versions, machines and numbers of threads are allowed, with a notice: the bits may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.blocks.stream import Stream
from secateur.checkpoint import Checkpoint, OutputFolder, StreamedModel
from secateur.errors import RecipeError
from secateur.evaluation import Following
from secateur.machine import processes
from secateur.machine.facts import machine, versions
from secateur.pruning.prepare import Prepared
from secateur.record import BlockRecord

NO_MATTER = frozenset(
    {"model", "out", "overwrite", "restart", "calibration", "images", "text", "windows"}
) | {"gradients", "save_gradients", "block_inputs", "device", "dtype"}
"""Of a recipe: what changes no bit of the result, or is compared by its content."""


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
    return OutputFolder(
        Path(recipe.out),
        prepared.folder,
        overwrite=recipe.overwrite,
        restart=recipe.restart,
        with_code=recipe.trust_remote_code,
        identity=facts,
        circumstances=circumstances(prepared),
        notice=notice,
    )


def identity(prepared: Prepared) -> dict[str, Any]:
    """What decides every bit of the result, by a name that a person knows."""
    recipe = prepared.recipe.spelled_out()
    facts = {key: value for key, value in recipe.items() if key not in NO_MATTER}
    for group in ("parameters", "regional"):
        facts.update({f"{group}.{name}": value for name, value in facts.pop(group).items()})
    calibration, heldout = prepared.calibration, [text.protocol.sha256 for text in prepared.heldout]
    facts["calibration tokens"] = None if calibration is None else calibration.protocol.sha256
    facts["held-out tokens"] = ", ".join(heldout) or None
    source = prepared.source
    facts["precision"] = str(source.dtype).removeprefix("torch.")
    facts["device"] = source.device.type
    facts["processes"] = processes.count()
    if prepared.folder is not None:
        facts["source weights"] = Checkpoint(prepared.folder).fingerprint()
    return facts


def circumstances(prepared: Prepared) -> dict[str, Any]:
    """What the bits may depend on beside it."""
    return {**versions(), **machine(prepared.source.device)}


def streams_of(
    stream: Stream | None, dense: Stream | None, following: Following | None
) -> dict[str, Stream]:
    """What moves from block to block, by name."""
    streams = {"calibration": stream, "dense": dense}
    for place, heldout in enumerate(() if following is None else following.streams):
        streams[f"held-out {place}" if place else "held-out"] = heldout
    return {name: stream for name, stream in streams.items() if stream is not None}


def go_on(output: OutputFolder, prepared: Prepared, streams: Mapping[str, Stream]) -> int:
    """Put everything where it was after the last finished block; how many are finished.

    Raises:
        CheckpointError: what was kept cannot be read.
    """
    done, source = len(output.state.finished), prepared.source
    if not done:
        return 0
    kept = output.state.restore_streams({name: s.hidden for name, s in streams.items()})
    for name, stream in streams.items():
        stream.hidden = kept[name]
    if not isinstance(source, StreamedModel):
        for index in range(done):
            changed = output.state.kept_weights(index)
            with source.open_block(index), torch.no_grad():
                for name, value in changed.items():
                    source.model.get_parameter(name).copy_(value)
    return done


def keep(
    output: OutputFolder,
    prepared: Prepared,
    changed: Mapping[str, Tensor],
    record: BlockRecord,
    hidden: Mapping[str, list[Tensor]],
    seconds: float,
) -> None:
    """Make a block finished: whatever happens now, it need not be pruned again.

    Args:
        output: takes the block.
        prepared: the run.
        changed: the block's new weights, by parameter name in the model, as they are stored.
        record: of the block.
        hidden: the streams by name, as they leave the block: their hidden states by batch.
        seconds: that the run has taken so far, earlier processes included.

    Raises:
        OutputError: it cannot be written.
    """
    shard, source = None, prepared.source
    if not processes.first():
        pass  # the weights are the same in all processes
    elif isinstance(source, StreamedModel):
        shard = output.write_block(source, record.index, changed)
    else:
        output.state.keep_weights(record.index, changed)
    output.state.finish_block(
        record.index,
        record.model_dump(mode="json"),
        shard,
        hidden,
        seconds,
    )
