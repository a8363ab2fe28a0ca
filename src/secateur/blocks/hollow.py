"""The model run with hollow blocks, which compute nothing: its own code around them does all else.

So is seen how the model calls every block, and what it makes of the last one's output. A hollow
block takes the place of the whole call of a block, hooks and a patched or compiled `forward`
included: those belong to the block, and run when it does.

    hidden [batch, tokens, ...]   what goes from block to block, and nothing beside it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.blocks.call import Call
from secateur.blocks.models_fault import models_fault
from secateur.blocks.replaced import replaced
from secateur.checkpoint import Blocks
from secateur.errors import ModelError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_RETURNED = 3
"""Values that a block returns at most, as far as is tried: hidden states, a state, attentions."""

Visit = Callable[[int, Call, Tensor], Tensor]
"""(block, how it is called, hidden states) -> what it hands on in place of its output."""


class _NotComputed:
    """Stands for what a block returns beside hidden states, and a hollow one does not have."""


NOT_COMPUTED = _NotComputed()
"""The one of its kind; a model may drop it, or hand it back to its caller, and no more."""


class BlockByBlockError(ModelError):
    """A model whose blocks cannot be run one by one."""

    def __init__(self, what: str, model: PreTrainedModel) -> None:
        super().__init__(
            what,
            where=type(model).__name__,
            wanted="blocks that hand each other hidden states [batch, tokens, width], in order,"
            " and nothing else",
            hint="--method magnitude to prune it, --tasks to measure it: they run no block alone",
        )


@contextmanager
def hollow(blocks: Blocks, visit: Visit, returned: int) -> Iterator[None]:
    """Let every block return `visit(index, call, hidden)` instead of computing.

    Args:
        blocks: those of the model; they are as they were afterwards.
        visit: see `Visit`.
        returned: values in the tuple that the model takes from a block; 0 for a bare tensor.
    """

    def call_of(index: int) -> Callable[..., Any]:
        def hollow_call(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], Tensor):
                hidden, call = args[0], Call(args[1:], kwargs, None)
            else:
                tensors = (key for key, value in kwargs.items() if isinstance(value, Tensor))
                if args or (name := next(tensors, None)) is None:
                    raise ModelError(f"block {index} is called without hidden states")
                hidden = kwargs.pop(name)
                call = Call((), kwargs, name)
            output = visit(index, call, hidden)
            return (output, *[NOT_COMPUTED] * (returned - 1)) if returned else output

        return hollow_call

    with ExitStack() as replacing:
        for index, block in enumerate(blocks.modules):
            # What torch runs when a module is called: eagerly, or compiled.
            inside = {"_call_impl": call_of(index), "_compiled_call_impl": None}
            replacing.enter_context(replaced(block, **inside))
        yield


def as_asked(inputs: Tensor) -> dict[str, Any]:
    """The arguments that a model wants: token ids are whole numbers, images are not."""
    if inputs.is_floating_point():
        return {"pixel_values": inputs}
    return {"input_ids": inputs, "use_cache": False}


def values_returned(model: PreTrainedModel, blocks: Blocks, inputs: Tensor) -> int:
    """How many values the model takes from each block; 0 for a bare tensor. Found by trying.

    A model that expects a tuple takes element 0 of what it gets, which of a plain tensor is one
    sequence: `record` notices.

    Raises:
        ModelError: the model fails before its first block.
        BlockByBlockError: it fails however many there are; says why where it went the farthest. Or
            blocks get more than hidden states (`_check_path`).
    """
    farthest: ModelError | None = None
    visited = -1
    for returned in range(MOST_RETURNED + 1):
        calls: list[Call] = []
        try:
            record(model, blocks, inputs, returned, calls)
        except ModelError as fault:
            named = isinstance(fault, BlockByBlockError)
            if (len(calls), named) > (visited, isinstance(farthest, BlockByBlockError)):
                farthest, visited = fault, len(calls)
        else:
            _check_path(model, blocks, inputs, returned)
            return returned
    assert farthest is not None
    if visited and not isinstance(farthest, BlockByBlockError):
        cause = farthest.__cause__
        said = reason(cause) if isinstance(cause, Exception) else farthest.what
        raise BlockByBlockError(f"the blocks cannot be run one by one ({said})", model) from cause
    raise farthest


def _check_path(model: PreTrainedModel, blocks: Blocks, inputs: Tensor, returned: int) -> None:
    """Prove that what blocks return reaches the next one alone.

    Two hollow runs, whose blocks hand on other hidden states, must call every block alike, and end
    alike where the last block gives the same.

    Args:
        model, blocks, inputs, returned: as for `record`.

    Raises:
        BlockByBlockError: an argument of a block, or the model's output, is made of more.
    """

    def run(changed: bool) -> list[Any]:
        entered: list[Tensor] = []
        seen: list[Any] = []

        def visit(index: int, call: Call, hidden: Tensor) -> Tensor:
            entered.append(hidden)
            seen.append((call.args, call.kwargs))
            if index == len(blocks) - 1:
                return entered[0]
            return -hidden - 1 if changed else hidden

        with hollow(blocks, visit, returned), models_fault(type(model).__name__):
            output = _without_head(model, blocks)(**as_asked(inputs))
        return [*seen, output.last_hidden_state]

    for index, pair in enumerate(zip(run(False), run(True), strict=True)):
        if not all(map(_same, *map(tree_leaves, pair))):
            what = f"block {index} gets" if index < len(blocks) else "the output is made of"
            raise BlockByBlockError(
                f"{what} more than hidden states of what another returned", model
            )


def _same(value: Any, other: Any) -> bool:
    if not (isinstance(value, Tensor) and isinstance(other, Tensor)):
        return True
    alike = value.shape == other.shape and value.dtype == other.dtype
    return alike and torch.allclose(value, other, rtol=0, atol=0, equal_nan=True)


def record(
    model: PreTrainedModel, blocks: Blocks, inputs: Tensor, returned: int, calls: list[Call]
) -> Tensor:
    """One hollow run up to the output head: the first block's input.

    Args:
        model: with its surroundings open.
        blocks: its blocks.
        inputs: int64 [batch, tokens], or images [batch, channels, height, width].
        returned: as `values_returned` gives it.
        calls: takes the call of every block.

    Raises:
        BlockByBlockError: something else than hidden states goes from block to block, or not from
            each to the next.
        ModelError: the model's own code fails.
    """
    passed_on: list[Tensor] = []

    def visit(index: int, call: Call, hidden: Tensor) -> Tensor:
        if any(leaf is NOT_COMPUTED for leaf in tree_leaves((call.args, call.kwargs))):
            raise BlockByBlockError(
                f"block {index} gets more than hidden states of what another returned", model
            )
        if index != len(calls) or (passed_on and hidden is not passed_on[-1]):
            raise BlockByBlockError(
                f"block {index} does not get what the block before it returned", model
            )
        # An image is as many tokens as its embedding makes of it.
        expected = (len(inputs),) if inputs.is_floating_point() else inputs.shape
        if hidden.dim() < 3 or hidden.shape[: len(expected)] != expected:
            raise BlockByBlockError(f"hidden states have shape {list(hidden.shape)}", model)
        calls.append(call)
        passed_on.append(hidden.view_as(hidden))  # a new object, so that identity proves the path
        return passed_on[-1]

    with hollow(blocks, visit, returned), models_fault(type(model).__name__):
        output = _without_head(model, blocks)(**as_asked(inputs))
    if len(calls) != len(blocks):
        raise BlockByBlockError(f"{len(calls)} of {len(blocks)} blocks are called", model)
    final = getattr(output, "last_hidden_state", None)
    if final is None or final.shape[:2] != passed_on[0].shape[:2]:
        shape = "none" if final is None else list(final.shape)
        raise BlockByBlockError(f"hidden states have shape {shape} after the last block", model)
    return passed_on[0]


def _without_head(model: PreTrainedModel, blocks: Blocks) -> nn.Module:
    """The model inside of a model that makes hidden states: all of it, if it has no head."""
    if model.base_model is not model:
        return cast("nn.Module", model.base_model)
    from transformers import PreTrainedModel

    names = blocks.path.split(".")
    parents = (model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names)))
    inner = (parent for parent in parents if isinstance(parent, PreTrainedModel))
    return cast("nn.Module", next(inner, model))
