"""The pruned block runs: what it makes of its inputs, and how far that is from the dense block's.

error = norm2(f_dense(X) - f_sparse(X)) / norm2(f_dense(X))

X [batch, tokens, width]  the first batch, of each process; thousands of tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.blocks.new_weights import Observed, OpenBlock
from secateur.blocks.stream import Stream, Tick
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
    stream, dense = observed.stream, observed.outputs[:1]
    observed.outputs.clear()
    count = min(1, len(stream.batches)) if last else len(stream.batches)
    sums, squares = [], list[Tensor]()
    for number, (batch, hidden) in enumerate(stream.at_hand(count)):
        tick("propagate", number, count)
        output = batch.run(block.module, block.index, hidden)
        sums.append(output.sum(dtype=torch.float32))
        if number == 0:
            before = stream.activations.fetch(dense.pop())
            squares = [_sum_of_squares(output.float() - before.float()), _sum_of_squares(before)]
            del before
        batch.hidden = stream.activations.put(output)
    check_block_output(block, stream, sums, squares)
    difference, reference = processes.totals(*(float(square) for square in squares or (0.0, 0.0)))
    return float((difference / reference) ** 0.5) if reference else 0.0


def check_block_output(
    block: OpenBlock, stream: Stream, sums: Sequence[Tensor], squares: Sequence[Tensor] = ()
) -> None:
    """Raise if what a block made of some batches is not finite, or a sum over it.

    Its weights are finite, so it is the numbers between them that were too large.

    Args:
        block: it.
        stream: behind the block.
        sums: over the output of each of the first batches, float32 [].
        squares: other sums over it, on any device.

    Raises:
        NumericalError: names the block.
    """
    # One look for all batches: each look would wait for the accelerator.
    if not sums:
        return
    device = sums[0].device
    if all_finite(torch.stack([*sums, *(value.float().to(device) for value in squares)])):
        return
    for value in (*stream.hidden[: len(sums)], *squares):
        check_finite(value, "the block's output is", f"block {block.index}")


def _sum_of_squares(states: Tensor) -> Tensor:
    """A float64 scalar; row by row first, so that a long sum loses nothing.

    On the CPU where the device has no float64.
    """
    by_row: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return as_float64(by_row).square().sum()
