"""How a model calls a block: every argument but the hidden states, equal ones kept once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


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


def sequence_axis(value: Any, one: Any) -> int | None:
    """Along which axis an argument has its sequences; None if it is the same for all.

    Args:
        value: the argument for a batch.
        one: the same for one sequence.
    """
    if not isinstance(value, Tensor) or value.shape == one.shape:
        return None
    sizes = zip(value.shape, one.shape, strict=True)
    return next(axis for axis, (size, of_one) in enumerate(sizes) if size != of_one)


def join(
    calls: Sequence[Call], sequences: Sequence[int], of_batch: tuple[Call, Call]
) -> Call | None:
    """One call for the sequences of several, in order; None if they do not go together.

    Args:
        calls: equal tensors among their arguments are one, as `Interner` leaves them. Those that
            differ must have rows for their own sequences, as many for each.
        sequences: of every call.
        of_batch: how the block is called with some sequences, and with the first of them alone.
    """
    flat = [tree_flatten((call.args, call.kwargs, call.hidden_name)) for call in calls]
    spec = flat[0][1]
    batch, single = (tree_leaves((c.args, c.kwargs, c.hidden_name)) for c in of_batch)
    if any(other != spec for _, other in flat) or len(batch) != len(flat[0][0]):
        return None
    joined = []
    for *values, some, one in zip(*(leaves for leaves, _ in flat), batch, single, strict=True):
        if all(value is values[0] for value in values):
            joined.append(values[0])
        elif all(isinstance(value, Tensor) for value in values):
            if (axis := sequence_axis(some, one)) is None:
                return None
            shapes = [list(value.shape) for value in values]
            for shape, count in zip(shapes, sequences, strict=True):
                if shape[axis : axis + 1] != [one.shape[axis] * count]:
                    return None
                shape[axis] = 0
            if any(shape != shapes[0] for shape in shapes):
                return None
            joined.append(torch.cat(values, axis))
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
