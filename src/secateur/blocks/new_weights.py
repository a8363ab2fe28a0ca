"""New weights for one open block: score and mask, or solve, or mask and refine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.blocks.in_training import Masked
from secateur.blocks.observer import Observer
from secateur.blocks.regional import optimise
from secateur.blocks.scores import Scores, params_of
from secateur.blocks.stream import Stream, Tick
from secateur.blocks.task import Task
from secateur.checkpoint import Matrix
from secateur.checkpoint.gradient_store import GradientFile
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.methods import Params, Refine
from secateur.recipe import Plan
from secateur.sparsity import Pattern, keep_mask, without_dropped
from secateur.statistics import Need, Statistics, check_finite, uninformed


@dataclass(frozen=True)
class OpenBlock:
    """A block that is in memory, and what is pruned in it.

    Attributes:
        index: its number in the model.
        module: the block.
        prefix: what its parameters' names begin with in the model.
        patterns: what is pruned in it, and how.
        dense: what could be pruned in it and is not.
    """

    index: int
    module: nn.Module
    prefix: str
    patterns: Mapping[Matrix, Pattern]
    dense: tuple[Matrix, ...] = ()

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices that are pruned."""
        return tuple(self.patterns)


@dataclass(frozen=True)
class Observed:
    """What is known of an open block from running its calibration inputs through it dense.

    Attributes:
        stream: its inputs.
        observer: the statistics.
        outputs: what it makes of them by batch, each [batch, tokens, width]: of all batches where
            the optimiser aims at them, and of the first in any case.
        targets: what the regional optimiser aims at, the same shapes: the same, or what the block
            makes of the dense model's hidden states.
        error_factor: what weighs an error of the output (`error_factors.py`); None: all the same.
    """

    stream: Stream
    observer: Observer
    outputs: list[Tensor]
    targets: Sequence[Tensor]
    error_factor: Tensor | None = None


@dataclass(frozen=True)
class Pruned:
    """The matrices of a block, pruned.

    Attributes:
        weights: by matrix name float32 [out, in], zero where pruned.
        notices: what the user should know, a line each.
        judged: relative error on the judging sequences before and after the regional optimiser.
        params: the parameters that its method went by.
    """

    weights: dict[str, Tensor]
    notices: tuple[str, ...]
    judged: tuple[float, float] | None
    params: Params


@dataclass(frozen=True)
class Informed:
    """What a method may read of the matrices of a block, and how it scores them.

    Attributes:
        scores: of a method that scores.
        unknown: matrices that it knows nothing of.
        notices: what the user should know, a line each.
    """

    scores: Scores
    unknown: Sequence[Matrix]
    notices: tuple[str, ...]


def informed(
    block: OpenBlock, observed: Observed | None, gradients: GradientFile | None, plan: Plan
) -> Informed:
    """What a method may read of the matrices of an open block: see `new_weights`."""
    unknown, told = _unknown(block, observed, plan)
    statistics = {
        matrix.name: _statistics(block, matrix, observed, gradients, plan)
        for matrix in block.matrices
    }
    for matrix in unknown:
        values = uninformed(plan.method.needs, matrix.shape, matrix.read().device)
        statistics[matrix.name] = replace(statistics[matrix.name], values=values)
    flat = frozenset(m for m in block.matrices if statistics[m.name].without_gradient)
    told += _lines(
        [matrix for matrix in block.matrices if matrix in flat],
        "no gradient comes back to {}: Wanda's score",
    )
    scores = Scores(block.prefix, block.patterns, statistics, flat, plan.method)
    return Informed(scores, unknown, told)


def new_weights(
    block: OpenBlock,
    observed: Observed | None,
    gradients: GradientFile | None,
    plan: Plan,
    tick: Tick,
) -> Pruned:
    """Prune one block; the block itself is not changed.

    Args:
        block: the dense block.
        observed: None for a method that needs no data.
        gradients: full-model gradients, for a method that needs them.
        plan: what to do.
        tick: told of progress.

    Raises:
        NumericalError: a statistic, a score or a loss is not finite; names the matrix.
    """
    tick("prune", 0, 1)
    known = informed(block, observed, gradients, plan)
    scores, unknown, told = known.scores, known.unknown, known.notices
    task = None if observed is None else task_of(block, observed, plan)
    if plan.method.solve is not None:
        assert observed is not None
        params = plan.params
        groups = [
            [matrix for matrix in group if matrix not in unknown]
            for group in observed.observer.groups
        ]
        start, notices = _solve(block, groups, scores.statistics, plan, tick)
        told += notices
        for matrix in unknown:
            weight = matrix.read().float()
            keep = keep_mask(weight.abs(), block.patterns[matrix], params.chosen_competition)
            start[matrix.name] = Masked(keep, without_dropped(weight, keep))
    else:
        params = params_of(task, scores, plan)
        start = scores.masked(params)
    if plan.method.refine is Refine.NONE or plan.trains_rounded:
        return Pruned({name: masked.weight for name, masked in start.items()}, told, None, params)
    assert task is not None

    def choose(matrix: Matrix, weight: Tensor) -> Tensor:
        return scores.keep(matrix, weight, params)

    refined = optimise(task, start, choose, plan.regional, plan.seed, tick)
    return Pruned(refined.weights, told, refined.judged, params)


def task_of(block: OpenBlock, observed: Observed, plan: Plan) -> Task:
    """What the regional optimiser is to do with an open block."""
    unknown, _ = _unknown(block, observed, plan)
    still = frozenset(matrix.name for matrix in unknown if matrix.expert is not None)
    return Task(
        block.module, block.index, block.matrices, observed.stream, observed.targets,
        observed.error_factor, still,
    )  # fmt: skip


def _unknown(
    block: OpenBlock, observed: Observed | None, plan: Plan
) -> tuple[list[Matrix], tuple[str, ...]]:
    """The matrices that a method which reads statistics knows nothing of, and a notice of each.

    They are those of experts that saw too few tokens, and those that the block does not call.
    """
    if observed is None or not plan.method.needs:
        return [], ()
    starved = [matrix for matrix in observed.observer.starved if matrix in block.patterns]
    uncalled = [matrix for matrix in observed.observer.uncalled if matrix in block.patterns]
    experts: dict[str, dict[int | None, None]] = {}
    for matrix in starved:
        module = matrix.parameter.rpartition(".")[0]
        experts.setdefault(module, {})[matrix.expert] = None
    told = tuple(
        f"{block.prefix}{module}: fewer than {plan.expert_tokens} tokens reached expert"
        f" {', '.join(map(str, numbers))}: pruned by magnitude"
        for module, numbers in experts.items()
    )
    return [*starved, *uncalled], told + _lines(
        uncalled, "{} is not called as a linear layer by its block: pruned by magnitude"
    )


def _lines(matrices: Sequence[Matrix], line: str) -> tuple[str, ...]:
    """A notice for every kind of matrix, the same for every block and expert."""
    return tuple(line.format(kind) for kind in dict.fromkeys(matrix.kind for matrix in matrices))


def _solve(
    block: OpenBlock,
    groups: Sequence[Sequence[Matrix]],
    statistics: Mapping[str, Statistics],
    plan: Plan,
    tick: Tick,
) -> tuple[dict[str, Masked], tuple[str, ...]]:
    """Solve the matrices that read the same input, and get the same pattern, together.

    Of several processes each solves some of the groups.
    """
    assert plan.method.solve is not None
    start: dict[str, Masked] = {}
    told: list[tuple[int, str]] = []
    parts = list(_of_one_pattern(block, groups))
    for number, (group, pattern) in enumerate(parts):
        tick("solve", number, len(parts))
        if not processes.owns(number):
            for matrix in group:
                weight = torch.empty_like(matrix.read().float())
                start[matrix.name] = Masked(torch.empty_like(weight, dtype=torch.bool), weight)
            continue
        shared = statistics[group[0].name]
        try:
            solution = plan.method.solve(
                [matrix.read() for matrix in group], shared, pattern, plan.params
            )
        except NumericalError as fault:  # a method does not know what it works on
            where = block.prefix + group[0].name
            raise NumericalError(fault.what, where=where, hint=fault.hint) from fault
        for matrix, keep, weight in zip(group, solution.keep, solution.weights, strict=True):
            check_finite(weight, "the solution is", block.prefix + matrix.name)
            start[matrix.name] = Masked(keep, weight)
        told += [(number, f"{block.prefix}{group[0].kind}: {line}") for line in solution.notices]
    for number, (group, _) in enumerate(parts):
        solved = [start[matrix.name] for matrix in group]
        processes.copy_from(number, [t for masked in solved for t in (masked.keep, masked.weight)])
    return start, tuple(line for _, line in sorted(processes.gather(told)))


def _of_one_pattern(
    block: OpenBlock, groups: Sequence[Sequence[Matrix]]
) -> Iterator[tuple[list[Matrix], Pattern]]:
    """What is pruned of the groups, parted by pattern."""
    for group in groups:
        chosen = {m: block.patterns[m] for m in group if m in block.patterns}
        for pattern in dict.fromkeys(chosen.values()):
            yield [matrix for matrix, its in chosen.items() if its == pattern], pattern


def _statistics(
    block: OpenBlock,
    matrix: Matrix,
    observed: Observed | None,
    gradients: GradientFile | None,
    plan: Plan,
) -> Statistics:
    """Everything that the method may read about one matrix, checked."""
    name = block.prefix + matrix.name
    values: dict[Need, Tensor] = {}
    sequences, length = 0, None
    if observed is not None:
        sequences, length = observed.stream.sequences, observed.stream.length
        values.update(observed.observer.values(matrix))
    if gradients is not None and Need.FULL_GRADIENT in plan.method.needs:
        values[Need.FULL_GRADIENT] = gradients.read(name).to(matrix.read().device)
    statistics = Statistics(values, sequences, length)
    if (need := statistics.first_not_finite()) is not None:
        given = need is Need.FULL_GRADIENT
        raise NumericalError(
            f"{need.value} is not finite",
            where=name,
            hint="computing the gradients again" if given else None,
        )
    return statistics
