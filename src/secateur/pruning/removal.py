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
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.blocks.gaps import Gaps
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel, find_all_matrices, find_matrices
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.checkpoint.unfinished import CHOSEN
from secateur.data import TokenBatch
from secateur.errors import NumericalError
from secateur.evaluation.perplexity import effects_of
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
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
    file = None if folder is None else folder / CHOSEN
    known = processes.from_first(lambda: _read(file))
    if known is not None:
        return known
    assert prepared.plan.structures is not None
    total = len(prepared.source.blocks)
    count = prepared.plan.structures.removed_of(total)
    progress.begin(f"{prepared.recipe.method} {prepared.plan.structures}", total)
    (chosen,) = removed_for_each(prepared, [count], progress.tick)
    if file is not None and processes.first():
        write_facts(file, chosen.model_dump(mode="json"))
    return chosen


def removed_for_each(prepared: Prepared, counts: Sequence[int], tick: Tick) -> list[Removed]:
    """The blocks that go where so many go, for each of several numbers.

    Those of a smaller number are the first of a larger one, and are sought once; but for blocks
    that follow each other, which are sought for every number.

    Args:
        prepared: a run whose recipe has a pattern of structures.
        counts: how many of the blocks.
        tick: told of progress.

    Raises:
        NumericalError: a score is not finite.
    """
    method, total = prepared.recipe.chosen_method, len(prepared.source.blocks)
    importance = _importance(prepared, method, tick)
    if getattr(prepared.recipe.chosen_params, "contiguous", False):
        chosen = [_neighbours(importance, total, count) for count in counts]
    else:
        again = method.removal is not None and method.removal.again
        order, first = _choose(importance, total, max(counts), again=again)
        chosen = [(order[:count], first) for count in counts]
    sizes = [
        sum(rows * columns for rows, columns in (matrix.shape for matrix in matrices))
        for matrices in find_all_matrices(prepared.source.blocks)
    ]
    return [
        Removed(of=total, removed=gone, weights=sum(sizes[one] for one in gone), importance=scores)
        for gone, scores in chosen
    ]


def without_removed(prepared: Prepared, removed: Removed) -> tuple[Prepared, Gaps]:
    """The run on the model that is left, and what it needs of the dense one.

    Raises:
        ModelError: no such model can be made, or a block in it is not what it was.
    """
    fewer = prepared.source.without_blocks(removed.removed)
    tokens = to_prove_with(prepared.source, prepared.calibration)
    gaps = Gaps(prepared.source, fewer, removed.kept, tokens)
    told = f"{prepared.plan.structures}: blocks {removed.which} of {removed.of} are removed,"
    told += " counted from 0"
    notices = (*prepared.notices, told)
    return replace(prepared, source=fewer, notices=notices, removed=removed), gaps


def _neighbours(
    importance: Importance, total: int, count: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The `count` blocks in a row that are the least important together, of equals the first."""
    scores = importance(range(total), count)
    start = scores.index(min(scores))
    return tuple(range(start, start + count)), tuple(scores)


def _choose(
    importance: Importance, total: int, count: int, *, again: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The `count` least important of `total` blocks, of equals the first; and the first scores."""
    left = list(range(total))
    scores = first = importance(left, 1)
    removed: list[int] = []
    while len(removed) < count:
        if removed and again:
            scores = importance(left, 1)
        least = scores.index(min(scores))
        scores = scores[:least] + scores[least + 1 :]
        removed.append(left.pop(least))
    return tuple(removed), tuple(first)


def _importance(prepared: Prepared, method: Method, tick: Tick) -> Importance:
    """How a method scores the blocks of a run's model."""
    source, calibration = prepared.source, prepared.calibration
    if method.removal is None:
        return lambda left, together: _finite(by_weights(source, method, left, tick))
    assert calibration is not None  # faults.py has seen to it
    size = batch_size(prepared.recipe.batch_size, tokens_in_each(calibration, source), source)
    host = prepared.activations.host
    if (of_states := method.removal.of_states) is not None:

        def states(left: Sequence[int], together: int) -> list[float]:
            stream = Stream(source, calibration.inputs, size, host=host)
            return _finite(by_states(source, stream, together, of_states, tick))

        return states
    of_effect = method.removal.of_effect
    assert of_effect is not None
    assert isinstance(calibration, TokenBatch)
    below = Stream(source, to_search_with(calibration), size, host=host)
    below.check_head(source)
    (dense,) = by_leaving_out(source, below, [()], tick)

    def effects(left: Sequence[int], together: int) -> list[float]:
        gone = set(range(len(source.blocks))).difference(left)
        places = range(len(left) - together + 1)
        tried = [gone.union(left[place : place + together]) for place in places]
        without = by_leaving_out(source, below, tried, tick)
        return _finite([of_effect(effect) for effect in effects_of(source, without, dense)])

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
def by_leaving_out(
    source: BlockModel, below: Stream, choices: Sequence[Collection[int]], tick: Tick
) -> list[Stream]:
    """The stream behind the model without some of its blocks, for each of several choices of them.

    They go on together as long as they have lost the same blocks: one pass over the files serves
    all, and the model below the first block that goes is run once.

    Args:
        source: the model.
        below: before its first block; it stays there.
        choices: numbers of the blocks that are left out; none for the dense model.
        tick: told of progress.
    """
    ways: dict[tuple[int, ...], Stream] = {(): below.fork()}
    on: list[tuple[int, ...]] = [()] * len(choices)  # by the blocks that each has lost so far
    for index in range(len(source.blocks)):
        tick("run", index, len(source.blocks))
        before = on
        on = [
            (*way, index) if index in gone else way for way, gone in zip(on, choices, strict=True)
        ]
        forked = {new: ways[old].fork() for old, new in zip(before, on, strict=True) if old != new}
        ways = {way: stream for way, stream in ways.items() if way in on}
        if ways:
            with source.open_block(index) as module:
                for stream in ways.values():
                    stream.advance(module, index)
        ways |= forked
    return [ways[way] for way in on]


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
