"""One pass over the blocks: observe, score, mask, refine, propagate, hand over.

For every block, bottom to top:

    observe     the dense block runs on all calibration tokens; statistics and outputs fall out,
                of the outputs no more than the method or the measurement of its damage needs
    prune       the method scores or solves; masks are exact; weights are refined
    round       to few bits, if asked: by the inputs that the matrices of the pruned block read
    write       the new weights in the dtype of the files
    propagate   the pruned block runs; its outputs are the next block's inputs
    hand over   the result goes to the caller while the block is still in memory

So every block is calibrated on what the pruned model will really feed it. With the schedule
"matrix" every matrix is: it is pruned as the block, which runs once, reaches it (`onepass.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.blocks.block_result import BlockResult
from secateur.blocks.gaps import Gaps
from secateur.blocks.narrowed import Narrowed
from secateur.blocks.new_weights import Observed, OpenBlock, new_weights
from secateur.blocks.observe import Observation, observe
from secateur.blocks.observer import Observer, ToGather
from secateur.blocks.onepass import GroupSteps, groups_in_order, run_once
from secateur.blocks.propagate import check_block_output, propagate
from secateur.blocks.rounding import observe_pruned, round_weights
from secateur.blocks.store import write
from secateur.blocks.stream import Batch, Stream, Tick, silent
from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.checkpoint.gradient_store import GradientFile
from secateur.machine.clock import Clock
from secateur.methods import Refine
from secateur.quantization import RoundedMatrix
from secateur.recipe import Plan
from secateur.sparsity import MatrixAudit, Pattern, audit
from secateur.statistics import Need, check_finite

ANOTHER_COPY = "another copy of the model: this one is damaged"
"""What to try if a weight is not finite."""


@dataclass(frozen=True)
class Aim:
    """What the regional optimiser aims at, beyond the dense block's own output.

    Attributes:
        dense: the same sequences as the dense model moves them, where the target is what its blocks
            make of them.
        error_factors: by block what weighs the errors of its output; see `error_factors.py`.
        missing: what the dense model has beside them, where structures were removed.
    """

    dense: Stream | None = None
    error_factors: Sequence[Tensor] | None = None
    missing: Gaps | Narrowed | None = None


@dataclass(frozen=True)
class SweepInputs:
    """What a sweep works with.

    Attributes:
        source: the model; weights are changed in its open block only.
        plan: what is done with every block.
        stream: the calibration sequences before the first block to be pruned; None without any.
        gradients: full-model gradients, for a method that needs them.
        aim: of the regional optimiser.
        first: what observing block 0 gave to another run on the same inputs, if that is known.
        tick: told of progress within a block.
    """

    source: BlockModel
    plan: Plan
    stream: Stream | None
    gradients: GradientFile | None = None
    aim: Aim = Aim()
    first: Observation | None = None
    tick: Tick = silent


def sweep(inputs: SweepInputs, done: int = 0) -> Iterator[BlockResult]:
    """Prune every block in turn.

    Args:
        inputs: what to work with.
        done: blocks at the bottom that are finished; the streams are where those leave them.

    Raises:
        PatternError: the pattern does not fit a matrix.
        ModelError: a block's matrices cannot be pruned.
        NumericalError: something is not finite; names the matrix.
    """
    source, selection = inputs.source, inputs.plan.selection
    _check_surroundings(source)
    every = find_all_matrices(source.blocks)
    for index in range(done, len(source.blocks)):
        clock = Clock(source.device)
        prefix = source.blocks.prefix(index)
        chosen = {m: selection.pattern_of(index, prefix + m.name) for m in every[index]}
        with source.open_block(index) as module:
            block = OpenBlock(
                index, module, prefix,
                {matrix: pattern for matrix, pattern in chosen.items() if pattern is not None},
                tuple(matrix for matrix, pattern in chosen.items() if pattern is None),
            )  # fmt: skip
            clock.lap("load")
            yield _prune_block(block, inputs, clock)


def _prune_block(block: OpenBlock, inputs: SweepInputs, clock: Clock) -> BlockResult:
    """Everything that happens to one open block, of which nothing outlives it but the result."""
    source, plan, stream, tick = inputs.source, inputs.plan, inputs.stream, inputs.tick
    for matrix, pattern in block.patterns.items():
        pattern.check_fits(matrix.shape[1], block.prefix + matrix.name)
    for name, weight in block.module.named_parameters():
        check_finite(weight, "the weights are", block.prefix + name, ANOTHER_COPY)
    if inputs.aim.missing is not None:
        inputs.aim.missing.prove(block.module, block.index)
    changed: dict[str, Tensor] = {}
    if plan.corrects and stream is not None and isinstance(inputs.aim.missing, Narrowed):
        changed = inputs.aim.missing.correct(block, stream, source)
    if not block.patterns:
        return _pass_by(block, inputs, clock, changed)
    if plan.schedule == "matrix" and stream is not None:
        groups = groups_in_order(block.module, block.index, stream, block.matrices)
        if groups is not None:
            return _prune_as_it_runs(block, groups, inputs, stream, clock)
    observed = error = None
    matrix_errors = dict[str, float]()
    if stream is not None:
        observed = _observe(block, inputs, stream)
        clock.lap("observe")
    pruned = new_weights(block, observed, inputs.gradients, plan, tick)
    looked_at = observed
    if observed is not None and plan.observes_pruned:
        clock.lap("prune")
        if block.index or inputs.first is None:  # which other runs read
            observed.observer.let_go()
        looked_at = observe_pruned(block, observed, pruned.weights, plan, tick)
        clock.lap("observe")
    pruned, rounded = round_weights(block, looked_at, pruned, plan, source, tick)
    if observed is not None:
        matrix_errors = _errors_by_matrix(block, observed.observer, pruned.weights)
    clock.lap("prune")
    changed |= write(block, pruned.weights, source)
    if observed is not None:
        error = propagate(block, observed, tick, block.index + 1 == len(source.blocks))
        clock.lap("propagate")
    if inputs.aim.missing is not None:  # how far mending moved it, which is no error
        error, matrix_errors = None, {}
    notices = pruned.notices
    if plan.schedule == "matrix" and stream is not None:
        told = "experts, or a matrix that is not used once: pruned by the block schedule"
        notices = (f"{block.prefix[:-1]}: {told}", *notices)
    return BlockResult(
        block.index, changed, _audits(block), error, matrix_errors, clock.seconds,
        notices, pruned.judged, pruned.params if len(plan.params.candidates) > 1 else None, rounded,
    )  # fmt: skip


def _observe(block: OpenBlock, inputs: SweepInputs, stream: Stream) -> Observed:
    """What the dense block shows of itself, and what the optimiser is to make of its outputs."""
    plan, aim = inputs.plan, inputs.aim
    dense, factors = aim.dense, aim.error_factors
    # Who aims at the outputs needs all; at the dense stream, which is the same in block 0, none.
    aims = plan.method.refine is not Refine.NONE or len(plan.params.candidates) > 1
    same_inputs = block.index == 0 and aim.missing is None
    all_outputs = aims and (dense is None or same_inputs)
    observation = inputs.first if block.index == 0 else None
    if observation is None:
        to_gather = ToGather(
            plan.method.needs, route_all=plan.route_all, expert_tokens=plan.expert_tokens,
            all_outputs=all_outputs,
        )  # fmt: skip
        observation = observe(
            block.module, block.index, stream, block.matrices, to_gather, inputs.tick
        )
    outputs = list(observation.outputs)  # let go later; those of `first` serve other runs too
    if dense is not None:
        if same_inputs:
            dense.hidden = outputs
        elif aim.missing is not None:
            aim.missing.advance(dense, block.module, block.index, inputs.tick)
        else:
            dense.advance(block.module, block.index, inputs.tick)
    targets = outputs if dense is None else dense.hidden
    factor = None if factors is None else factors[block.index].to(inputs.source.device)
    return Observed(stream, observation.observer, outputs, targets, factor)


def _prune_as_it_runs(
    block: OpenBlock,
    groups: Sequence[Sequence[Matrix]],
    inputs: SweepInputs,
    stream: Stream,
    clock: Clock,
) -> BlockResult:
    """The same in one pass: each group of matrices is pruned as the stream reaches it."""
    plan, tick = inputs.plan, inputs.tick
    changed: dict[str, Tensor] = {}
    matrix_errors: dict[str, float] = {}
    rounded: dict[str, RoundedMatrix] = {}
    notices: list[str] = []
    to_gather = ToGather(plan.method.needs - {Need.FULL_GRADIENT})
    observers = {number: Observer(group, to_gather) for number, group in enumerate(groups)}

    def look(number: int, batch: Batch, read: Tensor) -> None:
        observers[number].count(groups[number], read, len(batch.hidden))

    def prune(number: int) -> None:
        observer = observers.pop(number)  # its statistics are let go with this call
        observer.join()
        clock.lap("observe")
        part = replace(block, patterns={m: block.patterns[m] for m in groups[number]})
        observed = Observed(stream, observer, [], [])
        pruned = new_weights(part, observed, inputs.gradients, plan, tick)
        pruned, stored = round_weights(part, observed, pruned, plan, inputs.source, tick)
        rounded.update(stored)
        matrix_errors.update(_errors_by_matrix(part, observer, pruned.weights))
        changed.update(write(part, pruned.weights, inputs.source))
        notices.extend(pruned.notices)
        clock.lap("prune")

    run_once(block.module, block.index, stream, groups, GroupSteps(look, prune), tick)
    sums = [output.sum(dtype=torch.float32) for _, output in stream.at_hand()]
    check_block_output(block, stream, sums)
    clock.lap("observe")
    return BlockResult(
        block.index, changed, _audits(block), None, matrix_errors, clock.seconds, tuple(notices),
        rounded=rounded,
    )  # fmt: skip


def _errors_by_matrix(
    block: OpenBlock, observer: Observer, pruned: Mapping[str, Tensor]
) -> dict[str, float]:
    """The output error of every matrix that saw inputs, by its name in the model."""
    errors = ((m, observer.output_error(m, pruned[m.name])) for m in block.matrices)
    return {block.prefix + m.name: error for m, error in errors if error is not None}


def _pass_by(
    block: OpenBlock, inputs: SweepInputs, clock: Clock, changed: dict[str, Tensor]
) -> BlockResult:
    """A block in which nothing is pruned: the streams move through it as it is."""
    for stream in (inputs.stream, inputs.aim.dense):
        if stream is not None:
            stream.advance(block.module, block.index, inputs.tick)
    if inputs.stream is not None:
        clock.lap("propagate")
    return BlockResult(block.index, changed, _audits(block), None, {}, clock.seconds, ())


def _audits(block: OpenBlock) -> dict[str, MatrixAudit]:
    """What is counted in every matrix of a block, pruned or not."""
    patterns: dict[Matrix, Pattern | None] = {**block.patterns, **dict.fromkeys(block.dense)}
    return {block.prefix + m.name: audit(m.read(), asked) for m, asked in patterns.items()}


def _check_surroundings(source: BlockModel) -> None:
    """Raise if what is copied as it is, embedding and head, holds a NaN or an infinity.

    Of a model that is in memory all is looked at: it is changed in place, and so is not to be left
    with half of its blocks pruned.
    """
    inside = source.blocks.path + "."
    with source.open_surroundings() as model:
        for name, weight in model.named_parameters():
            if not source.streamed or not name.startswith(inside):
                check_finite(weight, "the weights are", name, ANOTHER_COPY)
