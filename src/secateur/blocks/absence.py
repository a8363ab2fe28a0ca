"""What a block's mixture of experts gives without some of them, and which go by it.

Every expert's output for every token is computed once. Without an expert the router is the
family's own with one row less (`fewer_experts.py`); it picks and weighs among the others, and what
they make of the token is looked up. So asking for another set of experts costs a router, a sum and
whatever else the mixture has, such as a shared expert.

    memory    experts * tokens * width numbers in the model's precision
    asking    experts * removed sets, less those that are gone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.blocks.experts import run_expert
from secateur.blocks.fewer_experts import FewerExperts, find_experts, narrowed_router
from secateur.blocks.models_fault import models_fault
from secateur.blocks.replaced import replaced
from secateur.blocks.stream import Stream
from secateur.errors import NumericalError
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.methods import Absence


@dataclass(frozen=True)
class _Seen:
    """A batch in a mixture of experts.

    Attributes:
        args, kwargs: what the mixture is called with.
        output: what it gives [..., width].
        of_experts: what each expert makes of every token, [experts, tokens, width].
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    of_experts: Tensor


class Absences:
    """The mixture of experts of an open block, to be asked what it gives without some.

    Args:
        block: dense.
        index: which block of the model it is.
        stream: before the block, where it stays; as many sequences as are to be asked with.
        fewer: makes blocks of the same family.
    """

    @torch.no_grad()
    def __init__(self, block: nn.Module, index: int, stream: Stream, fewer: FewerExperts) -> None:
        name = find_experts(block)
        if name is None:
            raise ValueError(f"block {index} has no experts")
        within, _, self._leaf = name.rpartition(".")
        self._mixture = block.get_submodule(within)
        self._make = fewer.make(index, within)
        self._where = f"block {index}"
        self._seen = list(_run(block, index, stream, self._mixture, self._leaf))

    @torch.no_grad()
    def without(self, keep: Sequence[int]) -> Absence:
        """What the mixture gives with no more than these experts.

        Args:
            keep: their numbers; as many from every group as the router needs.

        Raises:
            ModelError: the family's code makes no mixture of so few.
            NumericalError: the output is not finite.
        """
        empty = self._make(len(keep))
        router = narrowed_router(self._mixture, empty, keep)
        experts = router.get_submodule(self._leaf)
        sums = [torch.stack(self._compare(router, experts, seen, keep)) for seen in self._seen]
        here = torch.stack(sums).sum(dim=0).tolist() if sums else [0.0, 0.0]  # one look for all
        lost, whole = processes.totals(*here)
        error = lost / whole if whole else float("nan")
        if error != error or error == float("inf"):
            raise NumericalError("the output without an expert is not finite", where=self._where)
        return Absence(error)

    def _compare(
        self, router: nn.Module, experts: nn.Module, seen: _Seen, keep: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """norm2(y - y')**2 and norm2(y)**2 of a batch, float64."""
        numbers = torch.tensor(keep, device=seen.of_experts.device)
        tokens = torch.arange(seen.of_experts.shape[1], device=numbers.device)

        def look_up(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            chosen = numbers[top_k_index.reshape(len(tokens), -1)]  # [tokens, picked]
            weights = top_k_weights.reshape(len(tokens), 1, -1)  # [tokens, 1, picked]
            outputs = seen.of_experts[chosen, tokens[:, None]]  # [tokens, picked, width]
            total = torch.bmm(weights.to(outputs.dtype), outputs)  # [tokens, 1, width]
            return total.view_as(hidden_states)

        with replaced(experts, forward=look_up), models_fault(self._where):
            output = _first(router(*seen.args, **seen.kwargs))
        difference = (seen.output - output).float()
        return (
            as_float64(difference.square().sum(dim=-1)).sum(),
            as_float64(seen.output.float().square().sum(dim=-1)).sum(),
        )


def choose_by_absence(
    score: Callable[[Sequence[int]], float], experts: int, remove: int, groups: int = 1
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The experts that go one after another, each the least important once the others are gone.

    Of several groups one goes from each at a time: the router takes no other numbers. While those
    of one group are tried, the first that is left is missing from every group that comes later.

    Args:
        score: (numbers of the experts that are left) -> the importance of those that are not.
        experts: how many there are.
        remove: how many go, a multiple of the groups.
        groups: that the experts lie in, by number, as many in each.

    Returns:
        the numbers of those that go, in the order in which they do; and the first score of each
        expert [experts].
    """
    size = experts // groups
    members = [list(range(start, start + size)) for start in range(0, experts, size)]
    removed: list[int] = []
    first: list[float] = []
    while len(removed) < remove:
        going = [group[0] for group in members]
        for number, group in enumerate(members):
            tried = []
            for one in group:
                missing = {*removed, *going[:number], one, *going[number + 1 :]}
                tried.append(score([e for e in range(experts) if e not in missing]))
            going[number] = group[tried.index(min(tried))]
            first += tried if not removed else []
        removed += going
        for group, one in zip(members, going, strict=True):
            group.remove(one)
    return tuple(removed), tuple(first)


def _run(
    block: nn.Module, index: int, stream: Stream, mixture: nn.Module, leaf: str
) -> Iterator[_Seen]:
    """What every batch is in the mixture of a block, and in its experts."""
    experts = mixture.get_submodule(leaf)
    called: list[tuple[Any, Any]] = []
    read: list[Tensor] = []
    given: list[Tensor] = []

    def see_call(module: nn.Module, args: Any, kwargs: Any) -> None:
        called.append((args, kwargs))

    def see_read(module: nn.Module, args: Any, kwargs: Any) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    def see_given(module: nn.Module, args: Any, output: Any) -> None:
        given.append(_first(output))

    for batch, hidden in stream.at_hand():
        handles = [
            mixture.register_forward_pre_hook(see_call, with_kwargs=True),
            experts.register_forward_pre_hook(see_read, with_kwargs=True),
            mixture.register_forward_hook(see_given),
        ]
        try:
            batch.run(block, index, hidden)
        finally:
            for handle in handles:
                handle.remove()
        x = read.pop()
        x = x.reshape(-1, x.shape[-1])  # [tokens, width]
        number = int(experts.num_experts)  # type: ignore[arg-type]
        each = [run_expert(experts, expert, x, [len(x)]) for expert in range(number)]
        args, kwargs = called.pop()
        yield _Seen(args, kwargs, given.pop(), torch.stack(each))


def _first(output: Any) -> Tensor:
    """The hidden states that a module gives, alone or before anything else."""
    return output if isinstance(output, Tensor) else output[0]
