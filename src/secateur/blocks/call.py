"""How a model calls a block: every argument but the hidden states, equal ones kept once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


@dataclass(frozen=True)
class Call:
    """What a block is called with besides the hidden states.

    Attributes:
        args, kwargs: as the model passed them; `None` stands where the hidden states were.
        hidden_name: the keyword the hidden states go under, or None if they come first.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_name: str | None

    def __call__(self, block: Callable[..., Any], hidden: Tensor) -> Tensor:
        """Run `block` on `hidden` [batch, tokens, width]; the hidden states it returns."""
        if self.hidden_name is None:
            output = block(hidden, *self.args, **self.kwargs)
        else:
            output = block(*self.args, **{**self.kwargs, self.hidden_name: hidden})
        return output if isinstance(output, Tensor) else output[0]


def join(calls: Sequence[Call], sequences: Sequence[int]) -> Call | None:
    """One call for the sequences of several, in order; None if they do not go together.

    Args:
        calls: equal tensors among their arguments are one, as `Interner` leaves them. Those that
            differ must have rows for their own sequences, as many for each.
        sequences: of every call.
    """
    flat = [tree_flatten((call.args, call.kwargs, call.hidden_name)) for call in calls]
    spec = flat[0][1]
    if any(other != spec for _, other in flat):
        return None
    joined = []
    for values in zip(*(leaves for leaves, _ in flat), strict=True):
        if all(value is values[0] for value in values):
            joined.append(values[0])
        elif all(isinstance(value, Tensor) for value in values):
            rows = {
                (len(value) / count, value.shape[1:]) if value.dim() else None
                for value, count in zip(values, sequences, strict=True)
            }
            step = rows.pop()
            if rows or step is None or step[0] != int(step[0]):
                return None
            joined.append(torch.cat(values))
        elif any(isinstance(value, Tensor) or value != values[0] for value in values):
            return None
        else:
            joined.append(values[0])
    args, kwargs, name = tree_unflatten(joined, spec)
    return Call(args, kwargs, name)


class Interner:
    """Makes equal tensors among recorded arguments one: masks and rotary tables differ rarely."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, calls: Sequence[Call]) -> tuple[Call, ...]:
        """The same calls, equal tensors made one."""
        return tuple(
            replace(
                call,
                args=tree_map(self._one, call.args),
                kwargs=tree_map(self._one, call.kwargs),
            )
            for call in calls
        )

    def _one(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        alike = self._seen.setdefault((value.shape, value.dtype), [])
        for known in alike:
            if known is value or torch.equal(known, value):
                return known
        alike.append(value)
        return value
