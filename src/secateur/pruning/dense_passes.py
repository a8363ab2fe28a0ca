"""Done on the dense model before its first block is pruned: `make_ready` does it all, in order.

ratios             of every part of every block, where the recipe asks for an allocation
held-out windows   go through the dense model, for the divergence from it, and then follow the run
structures         that are to be removed: which go, and the smaller model that the run goes on with
gradients          of the full model, for a method that needs them
aim                of the regional optimiser
first block        its statistics, whose inputs no pruning changes, if other runs share them

The runs of a comparison share what is the same for all of them (`reuse.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.blocks.error_factors import error_factors
from secateur.blocks.full_gradients import UpAndDown, full_gradients
from secateur.blocks.gaps import Gaps
from secateur.blocks.narrowed import Narrowed
from secateur.blocks.observe import Observation, observe
from secateur.blocks.observer import ToGather
from secateur.blocks.stream import Stream
from secateur.blocks.sweep import Aim, SweepInputs
from secateur.checkpoint import BlockModel, find_matrices
from secateur.checkpoint.gradient_store import GradientFile
from secateur.checkpoint.proved import read_batches, write_batches
from secateur.checkpoint.unfinished import DENSE
from secateur.errors import OutputError
from secateur.evaluation import Following, pass_through
from secateur.machine import processes
from secateur.machine.paths import as_path
from secateur.machine.waiting import doing
from secateur.methods import Refine
from secateur.progress import Progress
from secateur.pruning.allocate import allocate
from secateur.pruning.prepare import Prepared
from secateur.pruning.removal import choose_blocks, without_removed
from secateur.pruning.reuse import DenseKey, FirstBlockKey, GradientsKey, SharedWork, Stopwatch
from secateur.pruning.saved_gradients import matrix_shapes
from secateur.pruning.widths import choose_widths, to_choose_with, without_width


@dataclass(frozen=True)
class Surroundings:
    """What a run stands in while it lasts.

    Attributes:
        progress: told what happens.
        shared: what it has in common with other runs.
        watch: the seconds that it would take alone.
        scratch: folder for files.
        outlasts: whether the folder is there again for the next process if this one is killed, so
            that what took long is worth being written into it.
    """

    progress: Progress
    shared: SharedWork
    watch: Stopwatch
    scratch: Path
    outlasts: bool

    @property
    def for_the_next_process(self) -> Path | None:
        """The folder, if it outlasts this process."""
        return self.scratch if self.outlasts else None


@dataclass(frozen=True)
class ReadyRun:
    """A run whose blocks are to be pruned next: all that was made on the dense model.

    Attributes:
        prepared: its recipe and inputs, with the ratios that were allocated.
        surroundings: what it stands in.
        inputs: of the sweep over the blocks: the calibration sequences, gradients and aim.
        following: the held-out windows that follow the run; None if nothing is to be measured.
        done: blocks that earlier processes have finished.
    """

    prepared: Prepared
    surroundings: Surroundings
    inputs: SweepInputs
    following: Following | None
    done: int

    @property
    def streams(self) -> dict[str, Stream]:
        """What moves from block to block, by name."""
        streams = {"calibration": self.inputs.stream, "dense": self.inputs.aim.dense}
        for number, windows in enumerate(self.following.streams if self.following else ()):
            streams[f"held-out {number}" if number else "held-out"] = windows
        return {name: stream for name, stream in streams.items() if stream is not None}

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far in this process, without what only measures it."""
        measuring = 0.0 if self.following is None else self.following.seconds
        return self.surroundings.watch.seconds - measuring


def make_ready(prepared: Prepared, surroundings: Surroundings, done: int) -> ReadyRun:
    """Do all that is done on the dense model.

    Args:
        prepared: the run.
        surroundings: what it stands in.
        done: blocks that earlier processes have finished.

    Raises:
        SecateurError: something is not finite, does not fit or cannot be written.
    """
    prepared = allocate(prepared, surroundings.progress, surroundings.for_the_next_process)
    dense = _dense_windows(prepared, surroundings)
    if prepared.plan.structures is not None:
        prepared, inputs = _without_structures(prepared, surroundings)
        return ReadyRun(prepared, surroundings, inputs, _following(prepared, dense), done)
    following = _following(prepared, dense)
    stream = calibration_stream(prepared, prepared.source)
    gradients, aim, first = prepared.gradients, Aim(), None
    if stream is not None:
        gradients = _gradients(prepared, surroundings, stream)
        aim = _aim(prepared, surroundings, stream)
        first = None if done else _first_block(prepared, surroundings, stream)
    source, plan, tick = prepared.source, prepared.plan, surroundings.progress.tick
    inputs = SweepInputs(source, plan, stream, gradients, aim, first, tick)
    return ReadyRun(prepared, surroundings, inputs, following, done)


def _without_structures(
    prepared: Prepared, surroundings: Surroundings
) -> tuple[Prepared, SweepInputs]:
    """The run on what is left of its model, and what its blocks are mended with, if they are."""
    folder, progress = surroundings.for_the_next_process, surroundings.progress
    aim, whole, stream = Aim(), prepared.source, None
    missing: Gaps | Narrowed
    if prepared.plan.scorer is None:
        removed = choose_blocks(prepared, progress, folder)
        smaller, missing = without_removed(prepared, removed)
        ends: Sequence[int] = removed.ends
    else:
        choosing = calibration_stream(to_choose_with(prepared), whole)
        lost = choose_widths(prepared, choosing, progress, folder)
        smaller, missing = without_width(prepared, lost)
        ends = range(len(whole.blocks))
    if prepared.recipe.mend and (dense := calibration_stream(prepared, whole)):
        aim = _aim(prepared, surroundings, dense)
    if prepared.recipe.mend or prepared.plan.corrects:
        stream = calibration_stream(prepared, smaller.source)
    if (factors := aim.error_factors) is not None:
        aim = replace(aim, error_factors=[factors[end] for end in ends])
    aim = replace(aim, missing=missing)
    return smaller, SweepInputs(smaller.source, smaller.plan, stream, aim=aim, tick=progress.tick)


@doing("embedding the calibration sequences")
def calibration_stream(prepared: Prepared, source: BlockModel) -> Stream | None:
    """The calibration sequences before block 0; None for a method that needs none."""
    if prepared.calibration is None:
        return None
    calibration = prepared.calibration
    size = batch_size(prepared.recipe.batch_size, tokens_in_each(calibration, source), source)
    host = prepared.activations.host
    return Stream(source, calibration.inputs, size, calibration.labels, host=host)


def follow(prepared: Prepared, surroundings: Surroundings) -> Following | None:
    """The held-out windows, ready to follow the run; None if nothing is to be measured."""
    return _following(prepared, _dense_windows(prepared, surroundings))


def _following(prepared: Prepared, dense: Sequence[Stream]) -> Following | None:
    """The held-out windows, ready to follow the run on its model, as it may be smaller by now."""
    source = prepared.source
    if not prepared.heldout:
        return None
    return Following(source, prepared.heldout, [stream.behind(source) for stream in dense])


def _dense_windows(prepared: Prepared, surroundings: Surroundings) -> Sequence[Stream]:
    """The held-out windows of every text behind the dense model."""
    source, texts, shared = prepared.source, prepared.heldout, surroundings.shared
    progress, folder = surroundings.progress, surroundings.for_the_next_process
    if not texts:
        return ()
    asked = prepared.recipe.batch_size
    sizes = [batch_size(asked, text.input_ids.shape[1], source) for text in texts]

    @doing("measuring the dense model")
    def through_dense(number: int) -> Stream:
        inputs, size = texts[number].input_ids, sizes[number]
        file = None
        if folder is not None and shared.folder is None:
            file = processes.own_file(folder / (f"{number}_{DENSE}" if number else DENSE))
        if file is not None and file.is_file():
            stream = Stream(source, inputs, size, host=prepared.activations.host)
            stream.hidden = read_batches(file, {"dense": stream.hidden})["dense"]
            return stream
        progress.begin("dense", len(source.blocks))
        tick, name = progress.tick, "held out"
        stream = pass_through(source, inputs, size, tick, name, host=prepared.activations.host)
        if file is not None:
            write_batches(file, {"dense": stream.hidden})
        return stream

    tokens = tuple(text.protocol.token_sha256 for text in texts)
    key = DenseKey(tokens, tuple(sizes), prepared.activations.host)
    dense = shared.dense.once(key, lambda: [through_dense(number) for number in range(len(texts))])
    return surroundings.watch.measuring(dense)


def _gradients(
    prepared: Prepared, surroundings: Surroundings, stream: Stream
) -> GradientFile | None:
    """The full-model gradients, as given or computed now; None if the method needs none."""
    source, recipe, facts = prepared.source, prepared.recipe, prepared.gradient_facts
    shared, scratch, progress = surroundings.shared, surroundings.scratch, surroundings.progress
    if facts is None or prepared.gradients is not None:
        return prepared.gradients
    path = (shared.folder or scratch) / "gradients"
    if recipe.save_gradients is not None:
        path = as_path(recipe.save_gradients, fault=OutputError).resolve()

    def compute() -> GradientFile:
        # an interrupted run got this far
        known = shared.folder is None and recipe.save_gradients is None and path.exists()
        if processes.from_first(lambda: known):
            return processes.from_first(
                lambda: GradientFile.open(path, matrix_shapes(source), facts)
            )
        progress.begin("gradients", 2 * len(source.blocks))
        order = prepared.plan.params.gradient_order
        one_file = recipe.save_gradients is not None
        with GradientFile.create(
            path, facts, one_file=one_file, overwrite=recipe.overwrite
        ) as file:
            full_gradients(source, stream, file, order, _up_and_down(prepared, surroundings))
            watched = source.watch()
            file.source = {} if watched is None else watched.digests
        return GradientFile(path, facts)

    key = GradientsKey(path, tuple(facts.items()))
    return surroundings.watch.pruning(shared.gradients.once(key, compute))


def _aim(prepared: Prepared, surroundings: Surroundings, stream: Stream) -> Aim:
    """What the regional optimiser aims at, if the method has one."""
    plan, calibration = prepared.plan, prepared.calibration
    if calibration is None or plan.method.refine is not Refine.REGIONAL:
        return Aim()

    def compute() -> list[Tensor]:
        surroundings.progress.begin("error factors", 2 * len(prepared.source.blocks))
        return error_factors(prepared.source, stream, _up_and_down(prepared, surroundings))

    factors = None
    if plan.regional.weigh == "loss":
        made = surroundings.shared.error_factors.once(calibration.protocol.sha256, compute)
        factors = surroundings.watch.pruning(made)
    return Aim(stream.fork() if plan.regional.target == "model" else None, factors)


def _up_and_down(prepared: Prepared, surroundings: Surroundings) -> UpAndDown:
    """How gradients go through the dense model."""
    progress = surroundings.progress
    return UpAndDown(
        surroundings.scratch, prepared.recipe.block_inputs, progress.tick, progress.block
    )


def _first_block(
    prepared: Prepared, surroundings: Surroundings, stream: Stream
) -> Observation | None:
    """What observing block 0 gives to every run of a comparison; None for a run alone."""
    source, calibration, plan = prepared.source, prepared.calibration, prepared.plan
    shared = surroundings.shared
    if not shared.needs or calibration is None or not source.streamed:
        return None
    if plan.schedule == "matrix":  # no matrix but the first sees what the dense block gives it
        return None
    to_gather = ToGather(shared.needs, route_all=plan.route_all, expert_tokens=plan.expert_tokens)

    @doing("observing the first block")
    def watch_block() -> Observation:
        with source.open_block(0) as block:
            return observe(block, 0, stream, find_matrices(block), to_gather)

    key = FirstBlockKey(
        calibration.protocol.sha256,
        len(stream.batches),
        plan.route_all,
        plan.expert_tokens,
        prepared.activations.host,
    )
    return surroundings.watch.pruning(shared.first_block.once(key, watch_block))
