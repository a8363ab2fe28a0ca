"""Fused experts run one at a time, so that what each of their matrices reads can be seen.

transformers multiplies all experts at once (`grouped_mm`), where no hook sees a single matrix.
While a block is observed, its experts run by this loop instead:

    for each expert e, with the tokens that the router sends it, in order:
        inner = act(x @ gate_up[e]')                    x [routed, width]
        y     = inner @ down[e]'                        times the router's weight of each token

Layouts are told by what transformers writes on the module: `is_transposed`, `has_gate`,
`has_bias`, `has_post_expert_norm`; gates, interleaved or not, are the module's own `_apply_gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.blocks.replaced import replaced
from secateur.checkpoint.matrices import first_projection

See = Callable[[str, int, Tensor, list[int], Tensor], None]
"""(parameter, expert, x, sizes, y): an expert's matrix makes y [rows, out] of x [rows, in].

sizes  how many of the rows are of each sequence of the batch, in order
"""
SeeOutput = Callable[[int, Tensor, Tensor], None]
"""(expert, y, gates): an expert makes y [rows, width] of its tokens; gates [rows] will weigh it."""


@contextmanager
def run_one_by_one(
    experts: nn.Module,
    sequences: int,
    see: See,
    see_all: See | None = None,
    see_output: SeeOutput | None = None,
) -> Iterator[None]:
    """Let a module of fused experts run expert by expert, and be seen.

    Args:
        experts: the module; it is as it was afterwards.
        sequences: in the batch that it runs on.
        see: told of every multiplication, also of those by experts that no token is sent to.
        see_all: told what each matrix would make of all tokens, whoever they are sent to.
        see_output: told what each expert makes of its tokens, and how much that counts.
    """

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])  # [batch * tokens, width]
        chosen = top_k_index.reshape(len(flat), -1)  # [batch * tokens, experts per token]
        weights = top_k_weights.reshape(len(flat), -1)
        length = len(flat) // sequences
        total = torch.zeros_like(flat)
        for expert in range(experts.num_experts):  # type: ignore[arg-type]
            if see_all is not None:
                with torch.no_grad():
                    run_expert(experts, expert, flat, [length] * sequences, see_all)
            tokens, slots = (chosen == expert).nonzero(as_tuple=True)  # tokens ascend
            sizes = torch.bincount(tokens // length, minlength=sequences).tolist()
            output = run_expert(experts, expert, flat[tokens], sizes, see)
            gates = weights[tokens, slots]  # [routed]
            if see_output is not None:
                see_output(expert, output, gates)
            weighed = output * gates[:, None]
            total = total.index_add(0, tokens, weighed.to(total.dtype))
        return total.view_as(hidden_states)

    with replaced(experts, forward=forward):
        yield


def see_nothing(parameter: str, expert: int, x: Tensor, sizes: list[int], y: Tensor) -> None:
    """The `See` of those who ask for outputs only."""


def run_expert(
    experts: Any, expert: int, x: Tensor, sizes: list[int], see: See = see_nothing
) -> Tensor:
    """What one expert makes of x [rows, width]: [rows, width], not yet weighed."""
    name = first_projection(experts)
    projected = _project(experts, name, expert, x)
    see(name, expert, x, sizes, projected)
    inner = experts._apply_gate(projected) if experts.has_gate else experts.act_fn(projected)
    output = _project(experts, "down_proj", expert, inner)
    see("down_proj", expert, inner, sizes, output)
    if getattr(experts, "has_post_expert_norm", False):
        output = experts.post_expert_norm(output)
    return output


def _project(experts: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    """x [rows, in] times one expert's matrix, plus its bias: [rows, out]."""
    weight: Tensor = getattr(experts, name)[expert]
    y = x @ weight if experts.is_transposed else F.linear(x, weight)
    return y + getattr(experts, f"{name}_bias")[expert] if experts.has_bias else y
