"""The regional optimiser (Wanda++ RO): the kept weights of a block make up for the pruned ones.

    repeat `rounds` times:
        keep = mask by the score of the current weights         (first round only, if held)
        for each of `samples` sequences n, drawn at random:
            one optimiser step on   norm2(f_dense(X_n) - f_sparse(X_n))**2
    keep = mask by the score of the final weights

    f_dense, f_sparse   the dense block's own output, stored, and that of the pruned block
    X_n                 the block's input: the output of the pruned blocks below

Master weights are float32 whatever the block computes in: a step of 3e-7 vanishes in bfloat16.
Everything in the block that is not a prunable matrix stays as it is.

Two presets. `paper`: RMSprop at 3e-7, the mask chosen anew in every round, as published. `auto`:
Adam with a rate of its own for every matrix, which decays to nothing while the first mask is held,

    rate = step * rms(kept weights) / sqrt(in)

A step of Adam moves all weights of a row by about the rate, in directions that agree: it changes
the row's output by `rate * in * |x|` where the row gives `rms(W) * sqrt(in) * |x|`. So `step` is
the relative change of a layer's output per optimiser step, the same number at every width, where
3e-7 was found for layers 4096 wide and does nothing at 192 (docs/decisions/0003).

Source: Yang et al., arXiv 2503.04992, section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from secateur import ranks
from secateur.blocks.stream import Stream, Tick, silent
from secateur.checkpoint import Matrix
from secateur.checkpoint.matrices import with_weights
from secateur.errors import NumericalError

Choose = Callable[[Matrix, Tensor], Tensor]
"""(matrix, current float32 weights [out, in]) -> keep-mask [out, in]."""


class Regional(BaseModel):
    """Settings of the regional optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam (betas 0.9 and 0.99) or RMSprop (smoothing 0.99)."""
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The same rate for every weight; none: derived per matrix from `step`."""
    step: float = Field(default=0.35, gt=0, allow_inf_nan=False)
    """Relative change of a layer's output per optimiser step; sets the rate where none is given."""
    schedule: Literal["linear", "constant"] = "linear"
    """The rate decays linearly to zero over all rounds, or stays."""
    hold_mask: bool = True
    """Keep the first round's mask; otherwise choose it anew in every round and at the end."""
    rounds: int = Field(default=5, ge=1)
    """Rounds of masking and stepping."""
    samples: int = Field(default=32, ge=1)
    """Sequences drawn in each round, without repetition within it."""
    batch_size: int = Field(default=1, ge=1)
    """Sequences per optimiser step."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.learning_rate is not None and "step" in self.model_fields_set:
            raise ValueError("step derives the rate that learning_rate gives: leave one out")
        return self


PRESETS: Mapping[str, Regional] = {
    "auto": Regional(),
    "paper": Regional(
        optimizer="rmsprop", learning_rate=3e-7, schedule="constant", hold_mask=False
    ),
}


def optimise(
    block: nn.Module,
    index: int,
    matrices: Sequence[Matrix],
    stream: Stream,
    targets: Sequence[Tensor],
    choose: Choose,
    settings: Regional,
    seed: int,
    tick: Tick = silent,
    still: frozenset[str] = frozenset(),
) -> dict[str, tuple[Tensor, Tensor]]:
    """Prune and refine one block; the block itself is not changed.

    Args:
        block: the dense block.
        index: which block of the model it is.
        matrices: what is pruned in it.
        stream: its inputs.
        targets: the dense block's outputs by batch, each [batch, tokens, width].
        choose: gives the keep-mask for a matrix's current weights.
        settings: how to optimise.
        seed: for drawing the sequences.
        tick: told of progress.
        still: matrices that are masked and not refined: experts that see too little to learn from.

    Returns:
        by matrix name: the keep-mask, and the new weights float32 [out, in], zero where pruned.

    Raises:
        NumericalError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    by_name = {matrix.name: matrix for matrix in matrices}
    weights = {name: matrix.read().float().clone() for name, matrix in by_name.items()}
    keep = {name: choose(by_name[name], weight) for name, weight in weights.items()}
    _apply(weights, keep)
    moving = {name: weight for name, weight in weights.items() if name not in still}
    optimizer, schedule = _optimizer(moving, keep, settings, stream.sequences)
    for number in range(settings.rounds):
        if number and not settings.hold_mask:
            keep = {name: choose(by_name[name], weight) for name, weight in weights.items()}
            _apply(weights, keep)
        tick("optimise", number, settings.rounds)
        drawn = torch.randperm(stream.sequences, generator=generator)[: settings.samples]
        for chosen in torch.split(drawn, settings.batch_size):
            loss = _backward(block, index, by_name, weights, stream, targets, chosen)
            if not math.isfinite(loss):
                raise NumericalError(
                    f"the regional loss is {loss} in round {number + 1}",
                    where=f"block {index}",
                    hint="a smaller regional.learning_rate or regional.step",
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if settings.hold_mask:
                _apply(weights, keep)
    if not settings.hold_mask:
        keep = {name: choose(by_name[name], weight) for name, weight in weights.items()}
        _apply(weights, keep)
    return {name: (keep[name], weight.detach()) for name, weight in weights.items()}


def _optimizer(
    weights: dict[str, Tensor], keep: dict[str, Tensor], settings: Regional, sequences: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser with one group, and rate, per matrix; and the schedule of the rates."""
    groups = []
    for name, weight in weights.items():
        rate = settings.learning_rate
        if rate is None:
            kept = keep[name].sum().clamp_min(1)
            rms = float((weight.square().sum() / kept).sqrt())
            rate = settings.step * rms / math.sqrt(weight.shape[1])
        groups.append({"params": [weight.requires_grad_()], "lr": rate})
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    else:
        optimizer = torch.optim.RMSprop(groups, alpha=0.99)
    per_round = math.ceil(min(settings.samples, sequences) / settings.batch_size)
    steps = settings.rounds * per_round
    linear = settings.schedule == "linear"
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: 1 - done / steps if linear else 1.0
    )


@torch.enable_grad()
def _backward(
    block: nn.Module,
    index: int,
    by_name: dict[str, Matrix],
    weights: dict[str, Tensor],
    stream: Stream,
    targets: Sequence[Tensor],
    chosen: Tensor,
) -> float:
    """Gradients of the squared output error of some sequences, and that error per sequence.

    Each process computes them for those of the sequences that it owns; then they are summed.
    """
    dtype = next(iter(by_name.values())).read().dtype
    stored = with_weights(by_name.values(), weights, dtype)
    size = len(stream.batches[0].hidden)
    total = 0.0
    own = torch.isin(stream.numbers, chosen).nonzero().flatten()  # places among those here
    for number in torch.unique(own // size).tolist():
        rows = own[own // size == number] % size
        hidden, call = stream.batches[number].select(index, rows)
        target = targets[number][rows.to(hidden.device)]
        output = call(lambda *a, **k: functional_call(block, stored, a, k), hidden)
        loss = (output.float() - target.float()).square().sum() / len(chosen)
        loss.backward(retain_graph=True)
        total += float(loss.detach())
    moving = [weight for weight in weights.values() if weight.requires_grad]
    for weight in moving if ranks.count() > 1 else ():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    ranks.add_up([weight.grad for weight in moving if weight.grad is not None])
    return ranks.totals(total)[0]


@torch.no_grad()
def _apply(weights: dict[str, Tensor], keep: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.masked_fill_(~keep[name], 0)
