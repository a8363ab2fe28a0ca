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

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.blocks.observe import Observer, observe
from secateur.blocks.regional import Regional, optimise
from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import BlockModel, Matrix, find_matrices
from secateur.errors import NumericalError
from secateur.methods import Method, Params, Refine
from secateur.sparsity import MatrixAudit, Pattern, audit, keep_mask
from secateur.statistics import Statistics


@dataclass(frozen=True)
class Plan:
    """What to do with every block."""

    method: Method
    params: Params
    pattern: Pattern
    regional: Regional
    seed: int


@dataclass(frozen=True)
class BlockResult:
    """One pruned block.

    Attributes:
        index: which block.
        changed: parameter name in the model -> new value, in the orientation and dtype stored.
        audits: parameter name within the block -> what was counted in it.
        output_error: norm2(f_dense - f_sparse) / norm2(f_dense) over all calibration tokens, or
            None without calibration.
        seconds: wall time by phase.
    """

    index: int
    changed: dict[str, Tensor]
    audits: dict[str, MatrixAudit]
    output_error: float | None
    seconds: dict[str, float] = field(default_factory=dict)


def sweep(
    source: BlockModel, stream: Stream | None, plan: Plan, tick: Tick = silent
) -> Iterator[BlockResult]:
    """Prune every block in turn. Weights are changed in the open block only.

    Args:
        source: the model.
        stream: the calibration sequences before block 0; None for a method that needs no data.
        plan: what to do.
        tick: told of progress within a block.

    Raises:
        PatternError: the pattern does not fit a matrix.
        ModelError: a block's matrices cannot be pruned.
        NumericalError: something is not finite; names the matrix.
    """
    for index in range(len(source.blocks)):
        clock = _Clock()
        with source.open_block(index) as block:
            matrices = find_matrices(block)
            for matrix in matrices:
                where = source.blocks.prefix(index) + matrix.name
                plan.pattern.check_fits(matrix.shape[1], where)
                _check_finite(matrix.read(), "the weights are", where)
            clock.lap("load")
            observer = None
            targets: list[Tensor] = []
            if stream is not None:
                observer, targets = observe(block, index, stream, matrices, plan.method.needs, tick)
                clock.lap("observe")
            pruned = _prune(block, index, matrices, observer, targets, stream, source, plan, tick)
            clock.lap("prune")
            changed = {}
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                stored = pruned[matrix.name].to(source.storage_dtype(name))
                _check_finite(stored, "the pruned weights are", name)
                matrix.write(stored)
                changed[name] = matrix.as_stored(stored)
            error = None
            if stream is not None:
                error = _propagate(block, index, stream, targets, tick)
                clock.lap("propagate")
            audits = {matrix.name: audit(matrix.read(), plan.pattern) for matrix in matrices}
            yield BlockResult(index, changed, audits, error, clock.seconds)


def _prune(
    block: nn.Module,
    index: int,
    matrices: Sequence[Matrix],
    observer: Observer | None,
    targets: list[Tensor],
    stream: Stream | None,
    source: BlockModel,
    plan: Plan,
    tick: Tick,
) -> dict[str, Tensor]:
    """New weights by matrix name, float32 [out, in], zero where pruned."""
    statistics = {}
    for matrix in matrices:
        gathered = (
            Statistics({}, 0)
            if observer is None or stream is None
            else observer.statistics(matrix, stream.sequences)
        )
        if (need := gathered.first_not_finite()) is not None:
            where = source.blocks.prefix(index) + matrix.name
            raise NumericalError(f"{need.value} is not finite", where=where)
        statistics[matrix.name] = gathered

    def choose(matrix: Matrix, weight: Tensor) -> Tensor:
        assert plan.method.score is not None
        with torch.no_grad():
            score = plan.method.score(weight, statistics[matrix.name], plan.params)
            where = source.blocks.prefix(index) + matrix.name
            _check_finite(score, "the scores are", where)
            return keep_mask(score, plan.pattern, plan.params.competition)

    if plan.method.refine is Refine.REGIONAL:
        assert stream is not None
        refined = optimise(
            block, index, matrices, stream, targets, choose, plan.regional, plan.seed, tick
        )
        return {name: weight for name, (_, weight) in refined.items()}
    weights = {matrix.name: matrix.read().float() for matrix in matrices}
    return {m.name: weights[m.name] * choose(m, weights[m.name]) for m in matrices}


@torch.no_grad()
def _propagate(
    block: nn.Module, index: int, stream: Stream, targets: list[Tensor], tick: Tick
) -> float:
    """Move the stream through the pruned block; the relative error of its output."""
    difference = reference = 0.0
    for number, batch in enumerate(stream.batches):
        tick("propagate", number, len(stream.batches))
        target = targets.pop(0).float()
        batch.hidden = batch.run(block, index)
        difference += float((batch.hidden.float() - target).square().sum())
        reference += float(target.square().sum())
    error = (difference / reference) ** 0.5 if reference else 0.0
    if error != error:
        raise NumericalError("the pruned block's output is not finite", where=f"block {index}")
    return error


def _check_finite(values: Tensor, what: str, where: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericalError(f"{what} not finite", where=where)


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
