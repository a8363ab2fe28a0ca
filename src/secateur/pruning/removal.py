"""Which structures of a model go, by the scores of a method, and the model without them.

    states      one pass of all calibration tokens: what every block does to the hidden states
    effect      a few calibration tokens (`to_search_with`) go through the model without each block
                that may go, side by side: a copy leaves the stream below a block and goes on above
                it, so that one pass over the files serves all; again after each that goes, if the
                method asks for it
    weights     the sum of a method's scores of weights; needs no data

In memory are one block and the hidden states: of effects those of the few tokens for every block,
of states with `contiguous` those of all tokens for every block that goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.blocks.gaps import Gaps
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel, find_all_matrices, find_matrices
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.data import TokenBatch
from secateur.errors import NumericalError
from secateur.evaluation.perplexity import effect_of
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.machine.waiting import each
from secateur.methods import Method, States
from secateur.methods.removal import StatesFunction
from secateur.progress import Progress
from secateur.pruning.inputs import to_prove_with, to_search_with
from secateur.pruning.prepare import Prepared
from secateur.record import Removed
from secateur.statistics import Statistics

Importance = Callable[[Sequence[int], int], list[float]]
"""(numbers of the blocks that are left, how many go together) -> importance of those that begin at
each, as many as there are places for."""


def choose_blocks(prepared: Prepared, progress: Progress, folder: Path | None) -> Removed:
    """The blocks that a run removes.

    Args:
        prepared: a run whose recipe has a pattern of structures.
        progress: told what happens.
        folder: where the choice is kept for a process that goes on after an interruption; None
            for a run that nothing goes on with.

    Raises:
        NumericalError: a score is not finite.
    """
    file = None if folder is None else folder / "removed.json"
    known = processes.from_first(lambda: _read(file))
    if known is not None:
        return known
    assert prepared.plan.structures is not None
    method, source = prepared.recipe.chosen_method, prepared.source
    together = getattr(prepared.recipe.chosen_params, "contiguous", False)
    count = prepared.plan.structures.removed_of(len(source.blocks))
    progress.begin(f"{method.name} {prepared.plan.structures}", len(source.blocks))
    importance = _importance(prepared, method, progress.tick)
    again = method.removal is not None and method.removal.again
    total, every = len(source.blocks), find_all_matrices(source.blocks)
    removed, first = _choose(importance, total, count, together=together, again=again)
    gone = (matrix.shape for index in removed for matrix in every[index])
    weights = sum(rows * columns for rows, columns in gone)
    chosen = Removed(of=total, removed=tuple(removed), weights=weights, importance=tuple(first))
    if file is not None and processes.first():
        write_facts(file, chosen.model_dump(mode="json"))
    return chosen


def without_removed(prepared: Prepared, removed: Removed) -> tuple[Prepared, Gaps]:
    """The run on the model that is left, and what it needs of the dense one.

    Raises:
        ModelError: no such model can be made, or a block in it is not what it was.
    """
    fewer = prepared.source.without_blocks(removed.removed)
    tokens = to_prove_with(prepared.source, prepared.calibration)
    gaps = Gaps(prepared.source, fewer, removed.kept, tokens)
    told = f"blocks {removed.which} of {removed.of} are removed, counted from 0"
    notices = (*prepared.notices, told)
    return replace(prepared, source=fewer, notices=notices, removed=removed), gaps


def _choose(
    importance: Importance, total: int, count: int, *, together: bool, again: bool
) -> tuple[list[int], list[float]]:
    """The `count` least important of `total` blocks, of equals the first; and the first scores."""
    left = list(range(total))
    scores = first = importance(left, count if together else 1)
    if together:
        start = scores.index(min(scores))
        return [*range(start, start + count)], first
    removed: list[int] = []
    while len(removed) < count:
        if removed and again:
            scores = importance(left, 1)
        least = scores.index(min(scores))
        scores = scores[:least] + scores[least + 1 :]
        removed.append(left.pop(least))
    return removed, first


def _importance(prepared: Prepared, method: Method, tick: Tick) -> Importance:
    """How a method scores the blocks of a run's model."""
    source, calibration = prepared.source, prepared.calibration
    if method.removal is None:
        return lambda left, together: _finite(by_weights(source, method, left, tick))
    assert calibration is not None  # faults.py has seen to it
    size = batch_size(prepared.recipe.batch_size, tokens_in_each(calibration, source), source)
    host = prepared.activations.host
    if (of_states := method.removal.of_states) is not None:
        stream = Stream(source, calibration.inputs, size, host=host)
        return lambda left, together: _finite(by_states(source, stream, together, of_states, tick))
    of_effect = method.removal.of_effect
    assert of_effect is not None
    assert isinstance(calibration, TokenBatch)
    below = Stream(source, to_search_with(calibration), size, host=host)
    dense = below.fork()
    _through(source, dense, tick)

    def effects(left: Sequence[int], together: int) -> list[float]:
        moving = below.fork()
        without = by_skipping(source, moving, left, together, tick)
        measured = each("what the model predicts without each block", without)
        return _finite([of_effect(effect_of(source, one, dense)) for one in measured])

    return effects


@torch.no_grad()
def by_states(
    source: BlockModel, stream: Stream, together: int, score: StatesFunction, tick: Tick
) -> list[float]:
    """The importance of every block, or of so many from it on: a mean over the tokens.

    Args:
        source: the model.
        stream: before its first block; it is left behind the last one.
        together: blocks that are scored as one.
        score: of the method.
        tick: told of progress.
    """
    means: list[float] = []
    before: deque[list[Tensor]] = deque()
    for index in range(len(source.blocks)):
        tick("score", index, len(source.blocks))
        before.append(stream.hidden)
        with source.open_block(index) as module:
            stream.advance(module, index)
        if len(before) == together:
            fetch = stream.activations.fetch
            pairs = zip(before.popleft(), stream.hidden, strict=True)
            means.append(_mean([score(States(fetch(one), fetch(two))) for one, two in pairs]))
    return means


def _mean(importance: Sequence[Tensor]) -> float:
    """The mean over all tokens, of all processes."""
    sums = [as_float64(values).sum() for values in importance]
    here = float(torch.stack(sums).sum()) if sums else 0.0  # one look for all batches
    total, tokens = processes.totals(here, float(sum(values.numel() for values in importance)))
    return total / tokens


@torch.no_grad()
def by_skipping(
    source: BlockModel, stream: Stream, left: Sequence[int], together: int, tick: Tick
) -> list[Stream]:
    """The stream behind the model without each of its blocks, or so many from each on.

    Args:
        source: the model.
        stream: before its first block; it is left behind the last one.
        left: the numbers of its blocks that are run, ascending.
        together: blocks that are left out as one.
        tick: told of progress.

    Returns:
        one stream for every place that they may begin at.
    """
    without: list[Stream] = []
    places = len(left) - together + 1
    for position, index in enumerate(left):
        tick("score", position, len(left))
        if position < places:
            without.append(stream.fork())
        with source.open_block(index) as module:
            for start, other in enumerate(without):
                if start + together <= position:
                    other.advance(module, index)
            if position + 1 < places:
                stream.advance(module, index)
    return without


@torch.no_grad()
def by_weights(source: BlockModel, method: Method, left: Sequence[int], tick: Tick) -> list[float]:
    """The sum of a method's scores over the matrices of every block."""
    assert method.score is not None
    nothing, sums = Statistics({}, sequences=0), []
    for position, index in enumerate(left):
        tick("score", position, len(left))
        with source.open_block(index) as module:
            weights = [matrix.read().float() for matrix in find_matrices(module)]
            scores = [method.score(one, nothing, method.params()).sum() for one in weights]
            sums.append(float(as_float64(torch.stack(scores)).sum()))
    return sums


@torch.no_grad()
def _through(source: BlockModel, stream: Stream, tick: Tick) -> None:
    stream.check_head(source)
    for index in range(len(source.blocks)):
        tick("dense", index, len(source.blocks))
        with source.open_block(index) as module:
            stream.advance(module, index)


def _finite(importance: list[float]) -> list[float]:
    """The same, if a choice can be made by it.

    Raises:
        NumericalError: it cannot; names the block.
    """
    for number, value in enumerate(importance):
        if value != value or value in (float("inf"), float("-inf")):
            raise NumericalError("the importance is not finite", where=f"block {number}")
    return importance


def _read(file: Path | None) -> Removed | None:
    """The choice that an interrupted run had made."""
    if file is None or not file.is_file():
        return None
    return Removed.model_validate(read_facts(file))
