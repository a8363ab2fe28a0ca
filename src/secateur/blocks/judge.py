"""Parameters that suit a block: of a few that are tried, those with which it errs least.

    error(p) = that of the block pruned with parameters p, relative and by token (`task.py`),
               over the last sequences (`judging` says how many)

Where the regional optimiser follows, the error is measured against what that aims at. Ties go to
the first that is tried.

The choice is ours. The papers give one number for all blocks and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from secateur.blocks.task import Task, relative_error
from secateur.methods import Params

SEQUENCES = 32
"""Sequences that judge at least, if there are as many; of more than four times that, a quarter."""


def judging(count: int) -> int:
    """How many of so many calibration sequences judge: the last ones."""
    return min(count, max(SEQUENCES, count // 4))


def best_of(
    task: Task,
    candidates: Sequence[Params],
    prune: Callable[[Params], Mapping[str, Tensor]],
) -> Params:
    """The parameters with which the pruned block errs least.

    Args:
        task: the dense block, its inputs, and what it is to make of them.
        candidates: what is tried, at least one.
        prune: parameters -> by matrix name float32 [out, in], zero where pruned.
    """
    count = task.stream.sequences
    numbers = range(count - judging(count), count)
    errors = [relative_error(task, prune(params), numbers) for params in candidates]
    return candidates[errors.index(min(errors))]
