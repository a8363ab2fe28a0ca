"""Done on the dense model before its first block is pruned; the runs of a comparison share it.

follow          held-out windows go through the dense model, for the divergence from it
gradients_of    full-model gradients, for a method that needs them
aim_of          what the regional optimiser aims at
first_block     the statistics of block 0, whose inputs no pruning changes
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.blocks.error_factors import error_factors
from secateur.blocks.full_gradients import full_gradients
from secateur.blocks.observe import Observer, observe
from secateur.blocks.stream import Stream
from secateur.blocks.sweep import Aim
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.checkpoint.gradient_store import GradientFile
from secateur.checkpoint.unfinished import DENSE, read_batches, write_batches
from secateur.evaluation import Following, pass_through
from secateur.machine import processes
from secateur.methods import Refine
from secateur.progress import Progress
from secateur.pruning.prepare import Prepared, matrix_shapes
from secateur.pruning.reuse import Remembered


def follow(
    prepared: Prepared, shared: Remembered, shown: Progress, scratch: Path | None = None
) -> Following | None:
    """The held-out windows, ready to follow the run; None if nothing is to be measured.

    With a `scratch` folder, what the dense model made of them is kept there if the run is
    interrupted, and found there again.
    """
    source, texts = prepared.source, prepared.heldout
    if not texts:
        return None
    asked = prepared.recipe.batch_size
    sizes = [batch_size(asked, text.input_ids.shape[1], source) for text in texts]

    def through_dense(place: int) -> Stream:
        inputs, size = texts[place].input_ids, sizes[place]
        kept = None
        if scratch is not None and shared.folder is None:
            kept = processes.own_file(scratch / (f"{place}_{DENSE}" if place else DENSE))
        if kept is not None and kept.is_file():
            stream = Stream(source, inputs, size)
            stream.hidden = read_batches(kept, {"dense": stream.hidden})["dense"]
            return stream
        shown.begin("dense", len(source.blocks))
        stream = pass_through(source, inputs, size, shown.tick, "held out")
        if kept is not None:
            write_batches(kept, {"dense": stream.hidden})
        return stream

    dense = shared.once(
        "dense",
        tuple((text.protocol.token_sha256, size) for text, size in zip(texts, sizes, strict=True)),
        lambda: [through_dense(place) for place in range(len(texts))],
    )
    return Following(source, texts, dense)


def first_block(
    prepared: Prepared, shared: Remembered, stream: Stream
) -> tuple[Observer, list[Tensor]] | None:
    """What observing block 0 gives to every run of a comparison; None for a run alone."""
    source, calibration, plan = prepared.source, prepared.calibration, prepared.plan
    if not shared.needs or calibration is None or isinstance(source, ResidentModel):
        return None
    if plan.schedule == "matrix":  # no matrix but the first sees what the dense block gives it
        return None

    def watch() -> tuple[Observer, list[Tensor]]:
        with source.open_block(0) as block:
            return observe(
                block, 0, stream, find_matrices(block), shared.needs,
                route_all=plan.route_all, expert_tokens=plan.expert_tokens,
            )  # fmt: skip

    key = calibration.protocol.sha256, len(stream.batches), plan.route_all, plan.expert_tokens
    return shared.once("first block", key, watch)


def gradients_of(
    prepared: Prepared, shared: Remembered, stream: Stream | None, scratch: Path, shown: Progress
) -> GradientFile | None:
    """The full-model gradients, as given or computed now; None if the method needs none."""
    source, plan, recipe = prepared.source, prepared.plan, prepared.recipe
    facts = prepared.gradient_facts
    if facts is None or stream is None or prepared.gradients is not None:
        return prepared.gradients
    path = (shared.folder or scratch) / "gradients.safetensors"
    if recipe.save_gradients is not None:
        path = Path(recipe.save_gradients)

    def compute() -> GradientFile:
        known = shared.folder is None and path.is_file()  # an interrupted run got this far
        if processes.from_first(lambda: known):
            return processes.from_first(
                lambda: GradientFile.open(path, matrix_shapes(source), facts)
            )
        shown.begin("gradients", 2 * len(source.blocks))
        with GradientFile.create(path, matrix_shapes(source), facts) as file:
            full_gradients(
                source, stream, file, plan.params.gradient_order, scratch, recipe.block_inputs,
                shown.tick, shown.block,
            )  # fmt: skip
        return GradientFile(path)

    return shared.once("gradients", (path, *facts.items()), compute)


def aim_of(
    prepared: Prepared, shared: Remembered, stream: Stream | None, scratch: Path, shown: Progress
) -> Aim:
    """What the regional optimiser aims at, if the method has one; `stream` is before block 0."""
    plan, calibration = prepared.plan, prepared.calibration
    if stream is None or calibration is None or plan.method.refine is not Refine.REGIONAL:
        return Aim()

    def compute() -> list[Tensor]:
        shown.begin("error factors", 2 * len(prepared.source.blocks))
        return error_factors(
            prepared.source, stream, scratch, prepared.recipe.block_inputs, shown.tick, shown.block
        )

    factors = None
    if plan.regional.weigh == "loss":
        factors = shared.once("error factors", calibration.protocol.sha256, compute)
    return Aim(stream.fork() if plan.regional.target == "model" else None, factors)
