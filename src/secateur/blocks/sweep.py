"""One pass over the blocks: observe, score, mask, refine, propagate, hand over.

For every block, bottom to top:

    observe     the dense block runs on all calibration tokens; statistics and outputs fall out
    prune       the method scores or solves; masks are exact; the regional optimiser refines
    write       the new weights, rounded to the dtype that they will be stored in
    propagate   the pruned block runs; its outputs are the next block's inputs
    hand over   the result goes to the caller while the block is still in memory

So every block is calibrated on what the pruned model will really feed it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.blocks.observe import Observer, observe
from secateur.blocks.prune import Observed, OpenBlock, Plan, check_finite, new_weights
from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.checkpoint.gradients import GradientFile
from secateur.checkpoint.matrices import with_weights
from secateur.errors import NumericalError
from secateur.sparsity import MatrixAudit, Pattern, audit

ANOTHER_COPY = "another copy of the model: this one is damaged"


@dataclass(frozen=True)
class BlockResult:
    """One pruned block.

    Attributes:
        index: which block.
        changed: parameter name in the model -> new value, in the orientation and dtype stored.
        audits: name of a matrix in the model -> what was counted in it, pruned or not.
        output_error: norm2(f_dense - f_sparse) / norm2(f_dense) over all calibration tokens, or
            None without calibration or if nothing in it is pruned.
        matrix_errors: the same of every matrix alone, by its name in the model, on its first
            inputs; empty without calibration, and without an expert that no token reached.
        seconds: wall time by phase.
        notices: what the user should know, a line each.
        judged: relative output error on sequences that no optimiser step saw, before and after the
            regional optimiser; None without one.
    """

    index: int
    changed: dict[str, Tensor]
    audits: dict[str, MatrixAudit]
    output_error: float | None
    matrix_errors: dict[str, float]
    seconds: dict[str, float]
    notices: tuple[str, ...]
    judged: tuple[float, float] | None = None


def sweep(
    source: BlockModel,
    stream: Stream | None,
    plan: Plan,
    gradients: GradientFile | None = None,
    tick: Tick = silent,
    first: tuple[Observer, list[Tensor]] | None = None,
    done: int = 0,
    dense: Stream | None = None,
) -> Iterator[BlockResult]:
    """Prune every block in turn. Weights are changed in the open block only.

    Args:
        source: the model.
        stream: the calibration sequences before block 0; None for a method that needs no data.
        plan: what to do.
        gradients: full-model gradients, for a method that needs them.
        tick: told of progress within a block.
        first: what observing block 0 gave to another run on the same inputs; see `observe`.
        done: blocks at the bottom that are finished; `stream` is where it leaves them.
        dense: the same sequences as the dense model moves them, where the regional optimiser aims
            at what its blocks make of them.

    Raises:
        PatternError: the pattern does not fit a matrix.
        ModelError: a block's matrices cannot be pruned.
        NumericalError: something is not finite; names the matrix.
    """
    _check_surroundings(source)
    every = find_all_matrices(source.blocks)
    for index in range(done, len(source.blocks)):
        clock = _Clock()
        prefix = source.blocks.prefix(index)
        chosen = {m: plan.choice.pattern_of(index, prefix + m.name) for m in every[index]}
        with source.open_block(index) as module:
            block = OpenBlock(
                index,
                module,
                prefix,
                {matrix: pattern for matrix, pattern in chosen.items() if pattern is not None},
                tuple(matrix for matrix, pattern in chosen.items() if pattern is None),
            )
            clock.lap("load")
            # In a function of its own, so that nothing of this block outlives it but the result.
            known = first if index == 0 else None
            yield _prune_block(block, source, stream, plan, gradients, tick, clock, known, dense)


def _prune_block(
    block: OpenBlock,
    source: BlockModel,
    stream: Stream | None,
    plan: Plan,
    gradients: GradientFile | None,
    tick: Tick,
    clock: _Clock,
    known: tuple[Observer, list[Tensor]] | None,
    dense: Stream | None,
) -> BlockResult:
    """Everything that happens to one open block."""
    for matrix, pattern in block.patterns.items():
        pattern.check_fits(matrix.shape[1], block.prefix + matrix.name)
    for name, weight in block.module.named_parameters():
        check_finite(weight, "the weights are", block.prefix + name, ANOTHER_COPY)
    if not block.patterns:
        return _pass_by(block, stream, dense, tick, clock)
    observed = error = None
    matrix_errors: dict[str, float] = {}
    if stream is not None:
        observer, outputs = known or observe(
            block.module, block.index, stream, block.matrices, plan.method.needs, tick,
            plan.route_all, plan.expert_tokens,
        )  # fmt: skip
        outputs = list(outputs)  # let go one by one; those that are known serve other runs too
        if dense is not None:
            _advance_dense(block, dense, outputs, tick)
        observed = Observed(stream, observer, outputs, outputs if dense is None else dense.hidden)
        clock.lap("observe")
    pruned = new_weights(block, observed, gradients, plan, tick)
    if observed is not None:
        found = {
            block.prefix + matrix.name: observed.observer.output_error(
                matrix, pruned.weights[matrix.name]
            )
            for matrix in block.matrices
        }
        matrix_errors = {name: value for name, value in found.items() if value is not None}
    clock.lap("prune")
    changed = _write(block, pruned.weights, source)
    if observed is not None:
        error = _propagate(block, observed, tick)
        clock.lap("propagate")
    return BlockResult(
        block.index, changed, _audits(block), error, matrix_errors, clock.seconds,
        pruned.notices, pruned.judged,
    )  # fmt: skip


def _advance_dense(block: OpenBlock, dense: Stream, outputs: list[Tensor], tick: Tick) -> None:
    """Move the dense model's hidden states on; before block 0 they are the stream's own."""
    if block.index == 0:
        dense.hidden = outputs
    else:
        dense.advance(block.module, block.index, tick)


def _pass_by(
    block: OpenBlock, stream: Stream | None, dense: Stream | None, tick: Tick, clock: _Clock
) -> BlockResult:
    """A block in which nothing is pruned: the streams move through it as it is."""
    for moving in (stream, dense):
        if moving is not None:
            moving.advance(block.module, block.index, tick)
    if stream is not None:
        clock.lap("propagate")
    return BlockResult(block.index, {}, _audits(block), None, {}, clock.seconds, ())


def _audits(block: OpenBlock) -> dict[str, MatrixAudit]:
    """What is counted in every matrix of a block, pruned or not."""
    patterns: dict[Matrix, Pattern | None] = {**block.patterns, **dict.fromkeys(block.dense)}
    return {
        block.prefix + matrix.name: audit(matrix.read(), pattern)
        for matrix, pattern in patterns.items()
    }


def _write(block: OpenBlock, pruned: dict[str, Tensor], source: BlockModel) -> dict[str, Tensor]:
    """Put the new weights into the block as the storage dtype rounds them; what was stored."""
    for matrix in block.matrices:
        dtype = source.storage_dtype(block.prefix + matrix.parameter)
        pruned[matrix.name] = stored = pruned[matrix.name].to(dtype)
        check_finite(stored, "the pruned weights are", block.prefix + matrix.name)
        matrix.write(stored)
    return {
        block.prefix + name: value for name, value in with_weights(block.matrices, pruned).items()
    }


@torch.no_grad()
def _propagate(block: OpenBlock, observed: Observed, tick: Tick) -> float:
    """Move the stream through the pruned block; the relative error of its output."""
    batches, outputs = observed.stream.batches, observed.outputs
    difference = reference = 0.0
    for number, batch in enumerate(batches):
        tick("propagate", number, len(batches))
        target = outputs.pop(0).float()
        batch.hidden = batch.run(block.module, block.index)
        difference += float((batch.hidden.float() - target).square().sum())
        reference += float(target.square().sum())
    if not math.isfinite(difference) or not math.isfinite(reference):
        # the dense weights are finite, so it is the numbers between them that were too large
        raise NumericalError(
            "the block's output is not finite",
            where=f"block {block.index}",
            hint="--dtype float32",
        )
    return (difference / reference) ** 0.5 if reference else 0.0


def _check_surroundings(source: BlockModel) -> None:
    """Raise if what is copied as it is, embedding and head, holds a NaN or an infinity."""
    inside = source.blocks.path + "."
    with source.open_surroundings() as model:
        for name, weight in model.named_parameters():
            if not name.startswith(inside):
                check_finite(weight, "the weights are", name, ANOTHER_COPY)


class _Clock:
    """Wall seconds between laps; waits for the accelerator so that its work is counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
