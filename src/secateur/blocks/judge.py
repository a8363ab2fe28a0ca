"""Parameters that suit a block: of a few that are tried, those with which it errs least.

    error(p) = mean over tokens t of  norm2(f(x_t) - f_p(x_t))**2 / norm2(f(x_t))**2

    f, f_p   the dense block, and the block pruned with parameters p
    x_t      an input token, [width], of the last sequences (`judging` says how many)

Every token counts alike: the next block divides each by its size before it reads it, and in many
models one token (the first) is a thousand times as large as the others. Where the regional
optimiser follows, the error is measured against what that aims at. Ties go to the first that is
tried.

The choice is ours. The papers give one number for all blocks and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.blocks.regional import Task, run_with
from secateur.machine import processes
from secateur.methods import Params

SEQUENCES = 32
"""Sequences that judge at least, if there are as many; of more than four times that, a quarter."""


def judging(count: int) -> int:
    """How many of so many calibration sequences judge: the last ones."""
    return min(count, max(SEQUENCES, count // 4))


@torch.no_grad()
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
    numbers = torch.arange(count - judging(count), count)
    errors = [_error(task, prune(params), numbers) for params in candidates]
    return candidates[errors.index(min(errors))]


def _error(task: Task, weights: Mapping[str, Tensor], numbers: Tensor) -> float:
    """The error at the head of this module, as a sum over the tokens of some sequences."""
    total = torch.zeros((), dtype=torch.float64)
    for output, target in run_with(task, weights, numbers):
        aim = target.float()
        error = (output.float() - aim).square().sum(dim=-1)  # [some of the sequences, tokens]
        size = aim.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        total += (error / size).sum().double().cpu()
    return processes.totals(float(total))[0]
