"""What a block's router sends to each expert, and which experts go by it.

One pass of all calibration tokens: while a block runs, its experts run one at a time (`experts.py`)
and each tells what it makes of its tokens. The choice takes as many from every group of experts
that the router knows, and leaves it as many as it picks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from secateur.blocks.experts import run_one_by_one, see_nothing
from secateur.blocks.fewer_experts import find_experts
from secateur.blocks.stream import Stream, Tick, silent
from secateur.errors import PatternError
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.methods import Routing
from secateur.sparsity import Structures

_PICKED = ("num_experts_per_tok", "moe_topk", "top_k_experts")
"""Keys of how many experts see a token."""
_BEST_OF_GROUP = 2
"""Routers that know groups take a group for the sum of its two best experts."""


@dataclass(frozen=True)
class Router:
    """How the routers of a model choose.

    Attributes:
        experts: of a block.
        picked: how many of them see a token.
        groups: that the experts lie in, by number, as many in each.
        open_groups: of which a token's experts are picked.
    """

    experts: int
    picked: int
    groups: int = 1
    open_groups: int = 1

    @classmethod
    def of(cls, config: PreTrainedConfig, experts: int) -> Self:
        """What a configuration says of the routers of blocks with so many experts."""
        text = config.get_text_config(decoder=True)
        picked = next((found for key in _PICKED if (found := getattr(text, key, None))), 1)
        groups = getattr(text, "n_group", None) or 1
        return cls(experts, picked, groups, getattr(text, "topk_group", None) or 1)

    def removed_of(self, pattern: Structures) -> int:
        """How many experts of every block a pattern removes; a share is rounded to fit the groups.

        Raises:
            PatternError: the router cannot work with those that would be left.
        """
        count = pattern.removed_of(self.experts, self.groups)
        if count % self.groups:
            nearest = max(1, count // self.groups) * self.groups
            raise PatternError(
                f"{pattern} removes {count} of {self.experts} experts, which lie in"
                f" {self.groups} groups",
                wanted=f"a multiple of {self.groups}: as many from each",
                hint=f"experts-{nearest}",
            )
        left = self.experts - count
        fewest = self._fewest
        if left < fewest:
            most = self.experts - fewest
            raise PatternError(
                f"{pattern} leaves {left} of {self.experts} experts, and {self.picked} see each"
                " token" + (f", out of {self.open_groups} groups" if self.groups > 1 else ""),
                wanted=f"{fewest} left at least",
                hint=f"experts-{most}" if most > 0 else "a pattern that removes no experts",
            )
        return count

    @property
    def _fewest(self) -> int:
        """How many experts it needs at least."""
        if self.groups == 1:
            return self.picked
        in_each = max(_BEST_OF_GROUP, -(-self.picked // self.open_groups))
        return in_each * self.groups


def choose_experts(scores: Sequence[float], remove: int, groups: int = 1) -> tuple[int, ...]:
    """The numbers of the least important experts of a block, as many from each group.

    They come in turns, the least important of every group first, so that a smaller number takes
    the first of a larger one.

    Args:
        scores: the importance of every expert; of equals the first goes.
        remove: how many go, a multiple of the groups.
        groups: that the experts lie in, by number, as many in each.
    """
    size, each = len(scores) // groups, remove // groups
    if size * groups != len(scores) or each * groups != remove or not each < size:
        raise ValueError(f"{remove} of {len(scores)} experts in {groups} groups")
    members = (range(start, start + size) for start in range(0, len(scores), size))
    orders = [sorted(group, key=scores.__getitem__)[:each] for group in members]
    return tuple(one for turn in zip(*orders, strict=True) for one in turn)


class RoutingSums:
    """Sums over the tokens that a block's router sends to its experts.

    Args:
        experts: the block's fused experts.
    """

    def __init__(self, experts: nn.Module) -> None:
        self._experts = experts
        self._number = int(experts.num_experts)  # type: ignore[arg-type]
        none = experts.down_proj.new_zeros(4, dtype=torch.float32)  # type: ignore[operator]
        self._sums: list[list[Tensor]] = [[none] for _ in range(self._number)]  # [4] each

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Add up whatever the block runs inside."""
        with run_one_by_one(self._experts, 1, see_nothing, see_output=self._add):
            yield

    def _add(self, expert: int, output: Tensor, gates: Tensor) -> None:
        norms = output.detach().float().norm(dim=-1)  # [routed]
        weights = gates.detach().float()  # [routed]
        every = torch.stack([torch.ones_like(norms), weights, norms, weights * norms])
        self._sums[expert].append(every.sum(dim=1))

    def total(self) -> Routing:
        """The sums over all processes; each of them has watched the same block."""
        every = [as_float64(torch.stack(sums)).sum(dim=0) for sums in self._sums]
        table = torch.stack(every).cpu()  # [experts, 4]
        processes.add_up([table])
        return Routing(*table.T.contiguous())


@torch.no_grad()
def advance_and_see(
    stream: Stream, block: nn.Module, index: int, tick: Tick = silent
) -> Routing | None:
    """Move every batch through a block, and see what its router does.

    Args:
        stream: before the block; it is left behind it.
        block: open.
        index: which block of the model it is.
        tick: told of progress.

    Returns:
        None for a block without experts.
    """
    name = find_experts(block)
    if name is None:
        stream.advance(block, index, tick)
        return None
    sums = RoutingSums(block.get_submodule(name))
    with sums.watch():
        stream.advance(block, index, tick)
    return sums.total()
