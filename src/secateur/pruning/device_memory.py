"""What a run takes of an accelerator's memory at its worst moment, from shapes alone.

    the moment      what is there, beside the block and its statistics
    surroundings    embedding and head; the logits of a sequence and what its loss is made of
    observe         a batch at work in the block, and the gradients of what it passes on
    prune           scores and masks of all matrices, or the solver's copies of those it solves
    optimise        float32 weights, their gradients and moments; the sequences of a step or judges

Hidden states of all sequences come on top, where they wait on the device: inputs, outputs that the
optimiser aims at, held-out windows behind two models, and what enters every block for full-model
gradients. In main memory they take their place there, and of three batches here.

What a block holds while it runs follows from its matrices as in most families: those of one module
read the same input but for the last, which reads what the others gave. The constants beside it are
counted on Llamas (`benchmarks/ceilings.py`, which holds all of this against a device that counts).
Attention is taken for a fused kernel: a model that writes its scores out takes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig

from secateur.blocks.full_gradients import MEMORY_SHARE
from secateur.blocks.judge import judging
from secateur.blocks.observer import PROBE_TOKENS
from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.methods import Refine
from secateur.pruning.estimate import looked_up, searching
from secateur.recipe import Plan
from secateur.statistics import GRADIENTS, Need

RUNNING, WITH_GRADIENT, SENT_BACK, JUDGED = 4, 25, 13, 6
"""Hidden states' worth that a token holds in a running block beside what its matrices give: in a
forward pass, in one that ends in the norm of its output and goes back, in one that a gradient is
sent back through, and where its error is measured."""
PAUSED = 3
"""The same of a token that waits inside of a block (schedule matrix)."""
IN_FLIGHT = 3
"""Batches of hidden states on the device where they wait in main memory, if there are as many."""
LOSS, LIKELIHOOD = 16, 44
"""Bytes of a logit for its loss and gradient, and for the likelihood beside the dense model's."""
SOLVING = {"sparsegpt": (22, 3.5), "alps": (40, 2.0)}
"""Method -> bytes of every weight that is solved at once, and copies of its Hessian."""
SOLVING_OTHERS = (40, 3.5)
"""The same of a solver that is not in the list."""
ROUNDING = (14, 4.0)
"""The same of GPTQ."""


@dataclass(frozen=True)
class Sizes:
    """How much goes through the blocks.

    Attributes:
        sequences, length: of the calibration; 0 sequences for none.
        batch: sequences that run through a block together.
        heldout: tokens of all windows to measure on.
        free: bytes of the device that are free.
        keep_inputs: where full-model gradients keep what enters each block, as the recipe says.
    """

    sequences: int
    length: int
    batch: int
    heldout: int
    free: int
    keep_inputs: str

    @property
    def tokens(self) -> int:
        """Calibration tokens in all."""
        return self.sequences * self.length


@dataclass(frozen=True)
class _Block:
    """One block, in numbers and bytes.

    Attributes:
        weights: of its matrices.
        largest: of the largest of them.
        opened: bytes of its parameters, unless they are on the device anyway.
        hessians: bytes, one for each distinct input.
        solved: (weights, inputs) of every group that is solved together, in order.
        given: the most that the matrices of one module give a token, twice; and of all modules.
        widest: inputs of the widest matrix.
        read: inputs of all groups.
    """

    weights: int
    largest: int
    opened: int
    hessians: int
    solved: tuple[tuple[int, int], ...]
    given: tuple[float, float]
    widest: int
    read: int


def device_bytes(source: BlockModel, plan: Plan, sizes: Sizes, *, host: bool) -> int:
    """Bytes that a run takes of its device beside what is there, at its worst moment.

    Args:
        source: the model, its pieces closed.
        plan: what is done with every block.
        sizes: how much goes through the blocks.
        host: whether activations wait in main memory.
    """
    config = source.model.config.get_text_config(decoder=True)
    width: int = config.hidden_size
    size = source.dtype.itemsize
    state = width * size  # bytes of a token between blocks
    tokens = min(sizes.batch, max(1, sizes.sequences)) * sizes.length
    stream = sizes.sequences * sizes.length * state
    aims = plan.method.refine is Refine.REGIONAL or len(plan.params.candidates) > 1
    if plan.structures is None:
        waiting = (1 + aims) * stream
    else:
        mended = 2 * stream if plan.method.refine is Refine.REGIONAL else 0
        choosing = searching(plan, len(source.blocks), sizes.tokens) * state
        waiting = max(mended, choosing if plan.scorer is None else stream)
    waiting += 2 * sizes.heldout * state
    if host:
        waiting = min(IN_FLIGHT * tokens, sizes.tokens) * state
    waiting += looked_up(source, plan, sizes.sequences, sizes.length) * state  # never on the host
    blocks = [
        _block(source, module, matrices, config)
        for module, matrices in zip(
            source.blocks.modules, find_all_matrices(source.blocks), strict=True
        )
    ]
    plans = [plan] if plan.scorer is None else [plan, replace(plan, method=plan.scorer)]
    at_work = max(_at_work(block, of, sizes, state, size) for block in blocks for of in plans)
    most = waiting + max(at_work, _surroundings(source, plan, sizes, config))
    if _goes_back(plan) and sizes.sequences:
        inputs = len(source.blocks) * stream
        kept = sizes.keep_inputs == "memory" or (
            sizes.keep_inputs == "auto" and inputs <= MEMORY_SHARE * sizes.free
        )
        up_and_down = 2 * waiting if host else max(2 * stream, inputs * kept + stream)
        summed = Need.FULL_GRADIENT in plan.method.needs
        most = max(most, up_and_down + max(
            block.opened + 4 * (block.weights + block.largest) * summed
            + round((block.given[1] * size + SENT_BACK * state) * tokens)
            for block in blocks
        ))  # fmt: skip
    return most


def _goes_back(plan: Plan) -> bool:
    """Whether the model's loss is sent back through all of it."""
    weighed = plan.method.refine is Refine.REGIONAL and plan.regional.weigh == "loss"
    return Need.FULL_GRADIENT in plan.method.needs or weighed


def _at_work(block: _Block, plan: Plan, sizes: Sizes, state: int, size: int) -> int:
    """Bytes of an open block at its worst moment, without what waits."""
    needs, weights = plan.method.needs, block.weights
    batch = min(sizes.batch, max(1, sizes.sequences))
    tokens, length = batch * sizes.length, sizes.length
    base = block.opened + (PROBE_TOKENS * block.read * size if sizes.sequences else 0)
    gradients = 4 * weights if needs & GRADIENTS else 0
    moments = [base]
    if sizes.sequences:
        running = block.given[0] * size + RUNNING * state
        if Need.INPUT_NORM in needs:
            running += 4 * block.widest
        if Need.REGIONAL_GRADIENT in needs:
            running = max(running, block.given[1] * size + WITH_GRADIENT * state)
        held = block.widest * size + PAUSED * state if plan.schedule == "matrix" else 0
        moments.append(base + block.hessians * (Need.HESSIAN in needs) + gradients
                       + round(running * tokens + held * sizes.sequences * length))  # fmt: skip
    kept = base + block.hessians * (Need.HESSIAN in needs) + gradients
    kept += 4 * weights * (Need.REGIONAL_GRADIENT in needs)  # their sums and their roots
    if plan.method.solve is not None:
        moments.append(kept + _solving(block, plan))
    else:
        moments.append(kept + 5 * weights + (11 if gradients else 8) * block.largest)
    if plan.observes_pruned:  # its weights in float32, and as they were before
        running = round((block.given[0] * size + RUNNING * state) * tokens)
        moments.append(base + (4 + size) * weights + block.hessians + running)
    if plan.rounding is not None and plan.rounding.by == "gptq":
        moments.append(base + 4 * weights + block.hessians + _rounding(block))
    judged = block.given[0] * size + JUDGED * state
    if sizes.sequences and len(plan.params.candidates) > 1:
        together = min(batch, judging(sizes.sequences))
        moments.append(kept + 6 * weights + round(judged * together * length))
    if plan.method.refine is Refine.REGIONAL:
        regional = plan.regional
        step = min(regional.batch_size, max(1, sizes.sequences)) * length
        back = block.given[1] * size + (WITH_GRADIENT - JUDGED) * state
        together = min(batch, regional.judges)
        # Keep-masks, weights, the best ones and two moments: 17 bytes. Beside them the weights as
        # stored, which go as the gradients come. Of rounded ones also levels, and while a step
        # lasts what they are before, between and after they are rounded: 16 bytes.
        each = 19 + 16 * plan.trains_rounded
        moments += [
            kept + (each + 2) * weights + 4 * block.largest,
            kept + each * weights + round(back * step),
            kept + each * weights + round(judged * together * length),
        ]
    return max(moments)


def _solving(block: _Block, plan: Plan) -> int:
    """Bytes of a solver at its worst group, with what is solved before it."""
    of_weight, of_hessian = SOLVING.get(plan.method.name.removesuffix("-ro"), SOLVING_OTHERS)
    most = before = 0
    for weights, inputs in block.solved:
        copies = round(of_hessian * 4 * inputs**2)
        if plan.method.name == "sparsegpt":  # it has factored before it makes room for weights
            most = max(most, 5 * before + max(of_weight * weights + 4 * inputs**2, copies))
        else:
            most = max(most, 5 * before + of_weight * weights + copies)
        before += weights
    return most


def _rounding(block: _Block) -> int:
    """Bytes of GPTQ at its worst group, with what is rounded before it."""
    of_weight, of_hessian = ROUNDING
    most = before = 0
    for weights, inputs in block.solved:
        square = 4 * inputs**2  # it has factored before it makes room for weights
        most = max(most, before + max(of_weight * weights + square, round(of_hessian * square)))
        before += weights
    return most


def _surroundings(source: BlockModel, plan: Plan, sizes: Sizes, config: PreTrainedConfig) -> int:
    """Bytes of embedding and head, and of what is made of their logits."""
    prefix = source.blocks.path + "."
    outside = [p for name, p in source.model.named_parameters() if not name.startswith(prefix)]
    size = source.dtype.itemsize
    opened = sum(_opened(source, parameter) for parameter in outside)
    looked_at = max((parameter.numel() for parameter in outside), default=0)
    logits = sizes.length * getattr(config, "vocab_size", 1)
    of_logits = [looked_at]
    if _goes_back(plan):
        of_logits.append(logits * LOSS)
    if sizes.heldout:
        of_logits.append(logits * (4 + size) + min(logits, 2**26) * LIKELIHOOD)
    return opened + max(of_logits)


def _opened(source: BlockModel, parameter: nn.Parameter) -> int:
    """Bytes that opening a parameter takes."""
    there = parameter.device.type == source.device.type and parameter.dtype == source.dtype
    return 0 if there else parameter.numel() * source.dtype.itemsize


def _block(
    source: BlockModel, module: nn.Module, matrices: Sequence[Matrix], config: PreTrainedConfig
) -> _Block:
    """What is to be known of a block."""
    by_module: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        by_module.setdefault(matrix.kind.rpartition(".")[0], []).append(matrix)
    groups: list[list[Matrix]] = []
    given = []
    for members in by_module.values():
        *first, last = members
        by_inputs: dict[tuple[int, int | None], list[Matrix]] = {}
        for matrix in first:
            by_inputs.setdefault((matrix.shape[1], matrix.expert), []).append(matrix)
        groups += [*by_inputs.values(), [last]]
        given.append(2.0 * sum(m.shape[0] * _share(m, config) for m in first or [last]))
    counts = [m.shape[0] * m.shape[1] for m in matrices]
    return _Block(
        weights=sum(counts),
        largest=max(counts, default=0),
        opened=sum(_opened(source, parameter) for parameter in module.parameters()),
        hessians=sum(4 * group[0].shape[1] ** 2 for group in groups),
        solved=tuple(
            (sum(m.shape[0] * m.shape[1] for m in group), group[0].shape[1]) for group in groups
        ),
        given=(max(given, default=0.0), sum(given)),
        widest=max((m.shape[1] for m in matrices), default=0),
        read=sum(group[0].shape[1] for group in groups),
    )


def _share(matrix: Matrix, config: PreTrainedConfig) -> float:
    """The share of all tokens that a matrix sees, if the router spreads them evenly."""
    if matrix.expert is None:
        return 1.0
    experts = len(matrix.whole)
    return float(getattr(config, "num_experts_per_tok", experts)) / experts
