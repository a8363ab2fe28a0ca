"""Gradients of the full model's loss in the memory of one block.

    forward    the dense model runs block by block; only the blocks' inputs are kept
    head       d loss / d (last block's output), one sequence at a time, by the model's own head
    backward   from the last block to the first: run it again, send the gradient of its output
               through, aggregate those of its weights, pass that of its input down

    loss of sequence n = mean over its predicted tokens of -log p(token | the tokens before)
    loss of image n    = -log p(its label; without one, the class that the dense model sees in it)

What is kept between the passes are the block inputs (in memory, or in a scratch folder when they
do not fit) and the aggregate of one block at a time, which goes to a `GradientFile`. Tied
embeddings need no care: no gradient of theirs is asked for, and none passes through them to a
block.

Source: the gradients are GBLM-Pruner's, arXiv 2311.04902; taking them block by block is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.blocks.models_fault import models_fault
from secateur.blocks.observer import Observer, ToGather
from secateur.blocks.stream import Batch, Stream, Tick, silent
from secateur.checkpoint import BlockModel, find_matrices
from secateur.checkpoint.durable import writing
from secateur.checkpoint.gradient_store import GradientFile
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.machine.memory import free_bytes
from secateur.machine.waiting import each
from secateur.statistics import Need, Order, check_finite

Keep = Literal["auto", "memory", "disk"]
LookAtGradients = Callable[[int, Sequence[Tensor]], None]
"""(block, d loss / d its output by batch, each [batch, tokens, width], where activations wait), to
be left as they are."""
MEMORY_SHARE = 0.25
"""Block inputs stay in memory if they take less than this share of what is free."""


@dataclass(frozen=True)
class UpAndDown:
    """How the dense model is run forward and then backward, block by block.

    Attributes:
        scratch: folder for block inputs that do not fit in memory.
        keep: where block inputs go; auto decides by what is free.
        tick: told of progress within a block.
        passed: told of every block that a pass is through with.
    """

    scratch: Path
    keep: Keep = "auto"
    tick: Tick = silent
    passed: Callable[..., None] = lambda **facts: None


class BlockInputs:
    """The inputs of every block, in batches: in memory, or one file a block.

    Args:
        scratch: folder for the files, or None to keep them in memory.
    """

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._in_memory: dict[int, list[Tensor]] = {}

    def put(self, index: int, stream: Stream) -> None:
        """Keep the hidden states that enter block `index`."""
        hidden = stream.hidden
        if self._scratch is None:
            self._in_memory[index] = hidden
        else:
            tensors = {str(n): value.cpu().contiguous() for n, value in enumerate(hidden)}
            path = self._file(self._scratch, index)
            with writing(path):
                save_file(tensors, path)

    def take(self, index: int, stream: Stream) -> None:
        """Put the hidden states back that enter block `index`; they are kept no longer."""
        if self._scratch is None:
            hidden = self._in_memory.pop(index)
        else:
            path = self._file(self._scratch, index)
            loaded = load_file(path)
            # clone: on a CPU the tensors would be the mapped file itself
            hidden = [loaded[str(n)].clone() for n in range(len(stream.batches))]
            path.unlink()
        stream.hidden = hidden

    @staticmethod
    def _file(folder: Path, index: int) -> Path:
        return processes.own_file(folder / f"inputs-{index:05d}.safetensors")


def full_gradients(
    source: BlockModel,
    stream: Stream,
    file: GradientFile | None,
    order: Order,
    way: UpAndDown,
    look: LookAtGradients = lambda index, gradients: None,
) -> None:
    """Aggregate the loss gradient of every prunable matrix over all sequences into `file`.

    Args:
        source: the dense model.
        stream: the sequences before block 0; they are there again afterwards.
        file: takes float32 [out, in] by parameter name; None if only `look` is to see gradients.
        order: l2: root of the sum of squares; l1: sum of absolutes.
        way: how the blocks are run, and who is told.
        look: gets the gradients of every block's output, the last block's first.

    A matrix that the block does not call, or whose output takes no gradient, gets zero.

    Raises:
        ModelError: the model has no head to make a loss with, or fails by itself.
        NumericalError: a loss or a gradient is not finite.
    """
    stream.check_head(source)
    depth = len(source.blocks)
    inputs = BlockInputs(way.scratch if _on_disk(stream, depth, way.keep) else None)
    for index in range(depth):
        inputs.put(index, stream)
        with source.open_block(index) as block:
            stream.advance(block, index, way.tick)
        way.passed(block=index, blocks=depth, direction="forward")
    gradients = _of_last_output(source, stream)
    for index in reversed(range(depth)):
        look(index, gradients)
        inputs.take(index, stream)
        with source.open_block(index) as block:
            matrices = () if file is None else find_matrices(block)
            to_gather = ToGather(frozenset({Need.FULL_GRADIENT}), order, probe_tokens=0)
            observer = Observer(matrices, to_gather)
            above = stream.activations.bring(gradients)
            for number, ((batch, hidden), of_output) in enumerate(
                zip(stream.at_hand(), above, strict=True)
            ):
                way.tick("backward", number, len(stream.batches))
                hidden.requires_grad_(True)
                with observer.watch(len(hidden)), torch.enable_grad():
                    output = batch.run(block, index, hidden)
                    with models_fault(f"block {index}"):
                        (of_input,) = torch.autograd.grad(output, hidden, of_output)
                gradients[number] = stream.activations.put(of_input)
                hidden.requires_grad_(False)
            observer.join()
            uncalled = observer.uncalled
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                gradient = observer.values(matrix)[Need.FULL_GRADIENT]
                if matrix in uncalled:
                    gradient = torch.zeros_like(gradient)
                check_finite(gradient, "the loss gradient is", name)
                if file is not None:
                    file.write(name, gradient)
        way.passed(block=index, blocks=depth, direction="backward")


def _of_last_output(source: BlockModel, stream: Stream) -> list[Tensor]:
    """d loss / d (last block's output) by batch, each [batch, tokens, width]."""
    gradients, losses = [], list[Tensor]()
    with source.open_surroundings() as model:
        for batch in each("gradients of the loss", stream.batches):
            rows = [_of_row(stream, model, batch, row) for row in range(len(batch.hidden))]
            together = torch.cat([gradient for gradient, _ in rows])
            gradients.append(stream.activations.put(together))
            losses += [loss for _, loss in rows]
    # One look for all sequences: each look would wait for the accelerator.
    for number, finite in enumerate(torch.stack(losses).isfinite().tolist() if losses else ()):
        if not finite:
            where = f"calibration sequence {int(stream.numbers[number])}"
            raise NumericalError("the loss is not finite", where=where)
    return gradients


def _of_row(
    stream: Stream, model: torch.nn.Module, batch: Batch, row: int
) -> tuple[Tensor, Tensor]:
    """The gradient of one sequence's loss, [1, tokens, width], and the loss, []."""
    waiting = batch.hidden[row : row + 1]
    final = stream.activations.fetch(waiting).detach().requires_grad_(True)
    with torch.enable_grad():
        logits = stream.logits(model, batch, slice(row, row + 1), final)
        if batch.inputs.is_floating_point():  # logits are [1, classes]
            seen = logits[0].argmax() if batch.labels is None else batch.labels[row]
            loss = F.cross_entropy(logits[0].float(), seen)
        else:
            loss = F.cross_entropy(logits[0, :-1].float(), batch.inputs[row, 1:])
    with models_fault(type(model).__name__):
        return torch.autograd.grad(loss, final)[0], loss.detach()


def _on_disk(stream: Stream, depth: int, keep: Keep) -> bool:
    if keep != "auto":
        return keep == "disk"
    needed = depth * sum(batch.hidden.nbytes for batch in stream.batches)
    return needed > MEMORY_SHARE * free_bytes(stream.batches[0].hidden.device)
