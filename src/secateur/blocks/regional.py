"""The regional optimiser (Wanda++ RO): the kept weights of a block make up for the pruned ones.

    repeat `rounds` times:
        for each of `samples` sequences n, drawn at random:
            one optimiser step on   norm2(f_dense(Z_n) - f_sparse(X_n))**2
        keep = mask by the score of the current weights         (unless the mask is held)
    the weights after the round that did best on sequences that no step has seen

    error   of the outputs, relative, token by token (`task.py`)
    rate    step * min(1, error at the start / LARGE) * rms(kept weights) / sqrt(in)

    f_dense, f_sparse   the dense block and the pruned block
    X_n                 the block's input: the output of the pruned blocks below
    Z_n                 X_n, so that the block makes up for itself alone (target `block`, paper);
                        or what the dense model feeds it, so that it also makes up for the pruned
                        blocks below (target `model`)

Master weights are float32 whatever the block computes in: a step of 3e-7 vanishes in bfloat16.
Everything in the block that is not a prunable matrix stays as it is.

Where the block is quantised, f_sparse has the rounded weights, and a step moves the weights behind
the rounding and the scales of the grid (`quantization/trained.py`). A scale moves by the share
`SCALE_STEP` per step, and as the schedule says.

Sequence n belongs to stratum n modulo `batch_size`, and every step takes one of each: so processes
that share the sequences out share every step out, and draw what one process draws.

Source: Yang et al., arXiv 2503.04992, section 3 and appendix; target `model`, the derived rate and
the judging sequences are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from secateur.blocks.in_training import InTraining, Masked, Refined
from secateur.blocks.models_fault import models_fault
from secateur.blocks.stream import Tick, silent
from secateur.blocks.task import Portion, Task, portions, relative_error, run_with
from secateur.checkpoint import Matrix
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.recipe import Regional

Choose = Callable[[Matrix, Tensor], Tensor]
"""(matrix, current float32 weights [out, in]) -> keep-mask [out, in]."""

LARGE = 0.25
"""The error from which on a block takes whole steps."""
SCALE_STEP = 0.01
"""The share of itself that a scale moves by in a step."""


def optimise(
    task: Task,
    start: dict[str, Masked],
    choose: Choose | None,
    settings: Regional,
    seed: int,
    tick: Tick = silent,
) -> Refined:
    """Refine the weights of one pruned block.

    Args:
        task: the block, and its inputs and targets.
        start: by matrix name, the mask and the weights to begin with; is empty afterwards.
        choose: gives the keep-mask for a matrix's current weights; for a mask that is not held.
        settings: how to optimise.
        seed: for drawing the sequences.
        tick: told of progress.

    Raises:
        NumericalError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + task.index)
    by_name = {matrix.name: matrix for matrix in task.matrices}
    block = InTraining(start)
    stepped, judging = _parted(task.stream.sequences, settings.judges)
    tick("judge", 0, settings.rounds)
    first = best = relative_error(task, block.seen(), judging) if judging else math.inf
    moving = [name for name in block.weights if name not in task.still]
    if not moving:
        return block.stored(None)
    best_state = block.state() if judging else None
    optimizer, schedule = _optimizer(block, moving, settings, stepped, first)
    for number in range(settings.rounds):
        tick("optimise", number, settings.rounds)
        finite = torch.ones((), dtype=torch.bool, device=block.weights[moving[0]].device)
        steps = (
            (len(chosen), list(portions(task, chosen)))
            for chosen in _draw(stepped, settings, generator)
        )
        for sequences, parts in task.stream.activations.ahead(steps):
            finite &= torch.isfinite(_backward(task, block, parts, sequences))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if settings.hold_mask:
                block.mask()
        if processes.totals(float(not finite))[0]:
            raise NumericalError(
                f"the regional loss is not finite in round {number + 1}",
                where=f"block {task.index}",
                hint="a smaller regional.learning_rate or regional.step",
            )
        if not settings.hold_mask:
            assert choose is not None
            block.keep = {
                name: choose(by_name[name], weight) for name, weight in block.weights.items()
            }
            block.mask()
        if judging and (error := relative_error(task, block.seen(), judging)) < best:
            best, best_state = error, block.state()
    if best_state is not None:
        block.put_back(best_state)
    return block.stored((first, best) if judging else None)


def _parted(sequences: int, judges: int) -> tuple[list[int], list[int]]:
    """The numbers of the sequences that are stepped on, and of those that judge."""
    everyone = list(range(sequences))
    if not judges:
        return everyone, []
    aside = min(judges, sequences // 4)
    return (everyone[:-aside], everyone[-aside:]) if aside else (everyone, everyone)


def _draw(stepped: list[int], settings: Regional, generator: torch.Generator) -> Iterator[Tensor]:
    """The sequences of every step of one round, int64 [at most batch_size]: one of each stratum."""
    strata = [
        torch.tensor(stepped[first :: settings.batch_size])
        for first in range(min(settings.batch_size, len(stepped)))
    ]
    drawn = [numbers[torch.randperm(len(numbers), generator=generator)] for numbers in strata]
    left = settings.samples
    for turn in range(max(map(len, drawn))):
        if left <= 0:
            return
        step = torch.stack([numbers[turn] for numbers in drawn if turn < len(numbers)])[:left]
        left -= len(step)
        yield step


def _optimizer(
    block: InTraining, moving: Sequence[str], settings: Regional, stepped: list[int], error: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser with one group, and rate, per matrix and grid; and the schedule of the rates.

    Without judges the error is not known, and counts as large.
    """
    groups = []
    for name in moving:
        weight, rate = block.weights[name], settings.learning_rate
        if rate is None:
            nonzeros = block.keep[name].sum().clamp_min(1)
            rms = float((weight.square().sum() / nonzeros).sqrt())
            rate = settings.step * min(1.0, error / LARGE) * rms / math.sqrt(weight.shape[1])
        groups.append({"params": [weight.requires_grad_()], "lr": rate})
        if name in block.grids:
            groups.append({"params": [block.grids[name].growth.requires_grad_()], "lr": SCALE_STEP})
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    else:
        optimizer = torch.optim.RMSprop(groups, alpha=0.99)
    per_round = math.ceil(min(settings.samples, len(stepped)) / settings.batch_size)
    steps = settings.rounds * per_round
    linear = settings.schedule == "linear"
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: max(0.0, 1 - done / steps) if linear else 1.0
    )


@torch.enable_grad()
def _backward(task: Task, block: InTraining, parts: Sequence[Portion], sequences: int) -> Tensor:
    """Gradients of the squared output error per sequence, and that error: [].

    Args:
        task: the dense block and its targets.
        block: its matrices.
        parts: the sequences of the step that this process owns; all processes' are summed.
        sequences: how many the step has.

    A gradient is a sum over tokens, which float16, that ends at 65504, may not hold: there it is
    computed of a loss that is divided by about their number: a power of two, which rounds nothing.
    """
    losses, tokens = [], 0
    for output, target in run_with(task, block.seen(), parts):
        tokens += output.shape[0] * output.shape[1]
        error = output.float() - target.float()  # [some of the sequences, tokens, width]
        if task.error_factor is not None:
            error = error @ task.error_factor
        losses.append(error.square().sum() / sequences)
    moving = block.leaves()
    loss = torch.stack(losses).sum() if losses else moving[0].new_zeros(())
    narrow = task.matrices[0].read().dtype is torch.float16
    divisor = 2.0 ** round(math.log2(tokens)) if narrow and tokens else 1.0
    if loss.requires_grad:  # else none of the matrices that move has a share in the output
        with models_fault(f"block {task.index}"):
            (loss / divisor).backward()  # type: ignore[no-untyped-call]
    for weight in moving if divisor != 1 else ():
        if weight.grad is not None:
            weight.grad *= divisor
    for weight in moving if processes.count() > 1 else ():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    processes.add_up([weight.grad for weight in moving if weight.grad is not None])
    return loss.detach()
