"""A pruned block at work: what it makes of its inputs, and how far that is from what it is to make.

error = sqrt(mean over tokens t of  norm2(g_t - f(x_t))**2 / norm2(g_t)**2)

f      the pruned block
x_t    a token of its input, [width]
g_t    what f is to make of it, [width]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.blocks.call import Call
from secateur.blocks.models_fault import models_fault
from secateur.blocks.stream import Stream
from secateur.checkpoint import Matrix
from secateur.checkpoint.matrices import with_weights
from secateur.machine import processes
from secateur.machine.accelerator import as_float64


@dataclass(frozen=True)
class Task:
    """A pruned block, its inputs, and what it is to make of them.

    Attributes:
        module: the dense block; it is not changed.
        index: which block of the model it is.
        matrices: what is pruned in it.
        stream: its inputs.
        targets: what its outputs are to be by batch, each [batch, tokens, width], where activations
            wait.
        error_factor: [width, width], multiplies the error before it is squared, see
            `error_factors.py`; None: every direction counts the same.
        still: matrices that are masked and not refined: experts that see too little to learn from.
    """

    module: nn.Module
    index: int
    matrices: Sequence[Matrix]
    stream: Stream
    targets: Sequence[Tensor]
    error_factor: Tensor | None = None
    still: frozenset[str] = frozenset()


@torch.no_grad()
def relative_error(task: Task, weights: Mapping[str, Tensor], numbers: Sequence[int]) -> float:
    """The error at the head of this module, over some sequences.

    Every token counts alike: the next block divides each by its size before it reads it, and in
    many models one token (the first) is a thousand times as large as the others.

    Args:
        task: the dense block, its inputs, and what it is to make of them.
        weights: by matrix name float32 [out, in], zero where pruned.
        numbers: of the sequences, at least one.
    """
    errors = []  # one look for all batches: each look would wait for the accelerator
    parts = task.stream.activations.ahead(portions(task, torch.tensor(numbers)))
    for output, target in run_with(task, weights, parts):
        aim = target.float()
        error = (output.float() - aim).square().sum(dim=-1)  # [some of the sequences, tokens]
        size = aim.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(error / size)
    sums = [as_float64(error).sum() for error in errors]
    lost, tokens = 0.0, float(sum(error.numel() for error in errors))
    for of_batch in torch.stack(sums).tolist() if sums else ():
        lost += of_batch
    lost, tokens = processes.totals(lost, tokens)
    return math.sqrt(lost / tokens)


@dataclass(frozen=True)
class Portion:
    """Some sequences on the device that computes.

    Attributes:
        hidden: what the block reads of them, [sequences, tokens, width].
        call: how the model calls the block with them.
        target: what it is to make of them, [sequences, tokens, width].
    """

    hidden: Tensor
    call: Call
    target: Tensor


def portions(task: Task, chosen: Tensor) -> Iterator[Portion]:
    """Some sequences in portions, as many at a time as there are in a batch of the stream.

    Args:
        task: has the stream.
        chosen: their numbers, int64 [chosen]; of them only those that this process owns.
    """
    places = torch.isin(task.stream.numbers, chosen).nonzero().flatten()  # places among those here
    for some, hidden, call in task.stream.select(task.index, places):
        yield Portion(hidden, call, task.stream.rows(task.targets, some))


def run_with(
    task: Task, weights: Mapping[str, Tensor], parts: Iterable[Portion]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the block makes of some sequences with these weights, and what it is to make of them.

    Both [sequences of a portion, tokens, width].
    """
    dtype = next(iter(task.matrices)).read().dtype
    stored = with_weights(task.matrices, weights, dtype)
    for portion in parts:
        with models_fault(f"block {task.index}"):
            output = portion.call(
                lambda *a, **k: functional_call(task.module, stored, a, k), portion.hidden
            )
        yield output, portion.target
