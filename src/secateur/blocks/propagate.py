"""The pruned block runs: what it makes of its inputs, and how far that is from the dense block's.

error = norm2(f_dense(X) - f_sparse(X)) / norm2(f_dense(X))

X [batch, tokens, width]  the first batch, of each process; thousands of tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.blocks.new_weights import Observed, OpenBlock
from secateur.blocks.stream import Batch, Tick
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.statistics import all_finite, check_finite


@torch.no_grad()
def propagate(block: OpenBlock, observed: Observed, tick: Tick, last: bool) -> float:
    """Move the stream through the pruned block; the relative error of its output.

    Args:
        block: with its new weights.
        observed: its outputs are let go.
        tick: told of progress.
        last: nothing reads what this block makes: only the first batch runs, for the error.

    Raises:
        NumericalError: an output is not finite.
    """
    batches = observed.stream.batches[:1] if last else observed.stream.batches
    dense = observed.outputs[:1]
    observed.outputs.clear()
    for number, batch in enumerate(batches):
        tick("propagate", number, len(batches))
        batch.hidden = batch.run(block.module, block.index)
    squares = [
        _sum_of_squares(value)
        for batch, before in zip(batches, dense, strict=False)
        for value in (batch.hidden.float() - before.float(), before)
    ]
    check_block_output(block, batches, *squares)
    difference, reference = processes.totals(*(float(square) for square in squares or (0.0, 0.0)))
    return float((difference / reference) ** 0.5) if reference else 0.0


def check_block_output(block: OpenBlock, batches: Sequence[Batch], *sums: Tensor) -> None:
    """Raise if what a block made of some batches is not finite, or a sum over it.

    Its weights are finite, so it is the numbers between them that were too large.

    Raises:
        NumericalError: names the block.
    """
    # One look for all batches: each look would wait for the accelerator.
    sums_of_batches = [batch.hidden.sum(dtype=torch.float32) for batch in batches]
    if not sums_of_batches:
        return
    device = sums_of_batches[0].device
    if all_finite(torch.stack([*sums_of_batches, *(value.float().to(device) for value in sums)])):
        return
    for value in (*(batch.hidden for batch in batches), *sums):
        check_finite(value, "the block's output is", f"block {block.index}")


def _sum_of_squares(states: Tensor) -> Tensor:
    """A float64 scalar; row by row first, so that a long sum loses nothing.

    On the CPU where the device has no float64.
    """
    by_row: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return as_float64(by_row).square().sum()
