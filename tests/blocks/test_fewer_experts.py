"""Blocks with fewer experts, against the dense block whose router is told never to pick some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from families import EXPERT_FAMILIES
from secateur.blocks.fewer_experts import FewerExperts, find_experts, narrowed
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel
from tiny import make_model, make_tokens

GROUPED: dict[str, Any] = {"n_routed_experts": 8, "num_experts": 8, "n_group": 2, "topk_group": 1}
IN_GROUPS = {"deepseek_v3": GROUPED, "deepseek_v32": GROUPED}
"""Families whose router first picks one of two groups."""
CORRECTIONS = ("correction_bias", "expert_bias")
"""Names of what is added to the scores that experts are picked by, and not to their weights."""


def last_block(model: Any) -> Any:
    """The last block of a model, its number, and the stream before it."""
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, make_tokens(6, 16), 4)
    for index, block in enumerate(source.blocks.modules[:-1]):
        stream.advance(block, index)
    return source.blocks.modules[-1].requires_grad_(False), len(source.blocks) - 1, stream


class Never(TorchFunctionMode):
    """The logits of some experts are -inf, in whichever way a router multiplies by its rows."""

    def __init__(self, rows: Tensor, gone: Sequence[int]) -> None:
        super().__init__()
        self._rows, self._gone, self.times = rows, list(gone), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        weight = args[1] if len(args) > 1 else None
        if func is nn.functional.linear and weight.data_ptr() == self._rows.data_ptr():
            self.times += 1
            output[..., self._gone] = -torch.inf
        return output


@contextmanager
def without(block: nn.Module, gone: Sequence[int]) -> Iterator[Never]:
    """Inside, the router of a dense block picks none of some experts."""
    name: Any = find_experts(block)
    shape = (block.get_submodule(name).num_experts, 32)
    outside = {key: one for key, one in block.named_parameters() if not key.startswith(name)}
    (rows,) = [one for one in outside.values() if one.shape == shape]
    tensors = {**outside, **dict(block.named_buffers())}
    biases = [one for key, one in tensors.items() if key.endswith(CORRECTIONS)]
    before = [bias.clone() for bias in biases]
    for bias in biases:  # a sigmoid makes 0 of -inf, and a correction may lift that
        bias[..., gone] = -torch.inf
    try:
        with Never(rows, gone) as never:
            yield never
    finally:
        for bias, old in zip(biases, before, strict=True):
            bias.copy_(old)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_a_block_gives_what_the_dense_one_does_with_logits_of_minus_infinity(
    family: str, implementation: str
) -> None:
    model = make_model(family, **IN_GROUPS.get(family, {}))
    model.set_experts_implementation(implementation)
    block, index, stream = last_block(model)
    total = block.get_submodule(find_experts(block)).num_experts
    keep = [0, 2, 3, 4, 5, 7] if family in IN_GROUPS else [3, 0, 2]
    gone = sorted(set(range(total)) - set(keep))
    (first, second) = stream.batches
    dense = first.run(block, index)
    with without(block, gone) as never:
        expected = [first.run(block, index), second.run(block, index)]
    assert never.times == 2
    fewer = narrowed(block, FewerExperts(model).make(index)(len(keep)), keep)
    for batch, output in zip((first, second), expected, strict=True):
        torch.testing.assert_close(batch.run(fewer, index), output, rtol=1e-5, atol=1e-5)
    assert (dense - expected[0]).abs().max() > 1e-3
    assert torch.equal(first.run(block, index), dense)
