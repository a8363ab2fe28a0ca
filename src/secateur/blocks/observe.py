"""All calibration tokens run through a dense block: its statistics and its outputs fall out.

The regional gradient comes out of the same forward pass, of which it takes one backward pass:

    loss = sum over sequences n of norm2(f(X_n))

Where neither a gradient nor a dense output is asked for, a batch runs no further than to the last
matrix: the statistics need what that reads, and not what it gives. Where no statistic is either,
the first batch runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.blocks.models_fault import models_fault
from secateur.blocks.observer import Observer, ToGather
from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import Matrix
from secateur.statistics import Need


@dataclass(frozen=True)
class Observation:
    """What was gathered while the batches ran through a dense block.

    Attributes:
        observer: has the statistics.
        outputs: what the block made of each batch, each [batch, tokens, width], where activations
            wait: what the regional optimiser aims at. Those of the first batch are there in any
            case: the output error is measured against them.
    """

    observer: Observer
    outputs: list[Tensor]


def observe(
    block: nn.Module,
    index: int,
    stream: Stream,
    matrices: Sequence[Matrix],
    to_gather: ToGather,
    tick: Tick = silent,
) -> Observation:
    """Run every batch through the dense block once, or as far as the statistics need it.

    Args:
        block: the dense block.
        index: which block of the model it is.
        stream: its inputs; they stay where they are.
        matrices: the matrices to observe.
        to_gather: what to gather; a full-model gradient is not to be had here, and left out.
        tick: told of progress.
    """
    observer = Observer(matrices, replace(to_gather, needs=to_gather.needs - {Need.FULL_GRADIENT}))
    with_gradient = Need.REGIONAL_GRADIENT in to_gather.needs
    outputs = []
    read = None if to_gather.needs or to_gather.all_outputs else 1
    for number, (batch, hidden) in enumerate(stream.at_hand(read)):
        tick("observe", number, len(stream.batches))
        hidden.requires_grad_(with_gradient)
        with_output = to_gather.all_outputs or number == 0
        whole = with_output or with_gradient
        with observer.watch(len(hidden), whole), torch.set_grad_enabled(with_gradient):
            output = batch.run(block, index, hidden)
            if with_gradient:
                loss = output.float().flatten(1).norm(dim=1).sum()
                with models_fault(f"block {index}"):
                    torch.autograd.grad(loss, hidden)
            if with_output:
                outputs.append(stream.activations.put(output.detach()))
        hidden.requires_grad_(False)
    observer.join()
    return Observation(observer, outputs)
