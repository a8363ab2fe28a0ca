"""Finds where the structures of a model's blocks lie, by what transformers makes of fewer of them.

There is no table of families. transformers builds the model once more of a configuration that asks
for fewer: the parameters that have become smaller are those that hold the structures, and by how
much says how many places one takes. Where the places of one structure can lie in several ways in a
parameter (gate above up, or in turn; q, k and v one above the other, or head by head), each way is
a layout of its own, and `blocks/narrowed.py` proves which of them it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.checkpoint.configuration import read_config
from secateur.checkpoint.matrices import find_matrices, is_fused_experts
from secateur.checkpoint.narrower import (
    EXPERTS,
    HEADS,
    KEEP_WIDTHS,
    Cut,
    Widths,
    keys_of_experts,
    number_of,
)
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.skeleton import empty_model
from secateur.checkpoint.smaller import SmallerCheckpoint
from secateur.checkpoint.structure import find_blocks
from secateur.errors import CheckpointError, ModelError, first_reason, some
from secateur.sparsity import IN_FULL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_HEADS = 64
"""Numbers of heads that are tried at most."""
MOST_LAYOUTS = 16
"""Layouts that are tried at most."""
_FFN = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "inner_dim",
        "hidden_dim", "shared_intermediate_size")  # fmt: skip
"""Settings that say, or are a multiple of, the channels of a feed-forward layer."""


def widths_of(checkpoint: Checkpoint, model: PreTrainedModel, unit: str) -> list[Widths]:
    """The ways in which a model's structures may lie in its parameters, the likeliest first.

    Args:
        checkpoint: its files.
        model: its skeleton.
        unit: "ffn", "heads" or "experts".

    Raises:
        ModelError: its configuration has no number of them, or they cannot be told by it.
    """
    text = model.config.get_text_config(decoder=True)
    why = "its configuration does not say how many there are"
    for total, fewer, asked in _questions(unit, text):
        try:
            config = asked.config(checkpoint.config, model.config, total - fewer)
            names = {name: name for name in checkpoint.names}
            smaller = SmallerCheckpoint(checkpoint, config, names)
            narrow = empty_model(read_config(smaller), smaller, model.dtype)
            return list(islice(_layouts(asked, fewer, model, narrow), MOST_LAYOUTS))
        except (ModelError, CheckpointError) as fault:
            why = fault.what
            if fault.__cause__ is not None:  # of transformers
                why = f"no model can be built with fewer ({first_reason(fault)})"
    raise ModelError(
        f"{IN_FULL[unit]} cannot be removed: {why}", where=type(model).__name__, hint=KEEP_WIDTHS
    )


def _questions(unit: str, text: PreTrainedConfig) -> Iterator[tuple[int, int, Widths]]:
    """What may ask for fewer structures: their number, how many fewer, and the settings for it.

    Of a feed-forward layer the number is that of the setting, which may be a multiple of theirs.
    """
    if unit == "heads":
        keys = tuple(key for key in HEADS if isinstance(number_of(text, key), int))
        if keys and (total := number_of(text, keys[-1])) > 1:
            size = number_of(text, "head_dim") or text.hidden_size // number_of(text, keys[0])
            for fewer in range(1, min(total, MOST_HEADS)):  # some numbers may not suit the family
                yield total, fewer, Widths(unit, total, (), keys, {"head_dim": size})
            yield total, 1, Widths(unit, total, (), keys, {})
        return
    if unit == "experts":
        for total in dict.fromkeys(number_of(text, key) for key in EXPERTS):
            if isinstance(total, int) and total > 1:
                keys = keys_of_experts(text, total)
                yield total, number_of(text, "n_group") or 1, Widths(unit, total, (), keys, {})
        return
    for key in _FFN:
        if isinstance(total := number_of(text, key), int) and total > 1:
            yield total, total // 2, Widths(unit, total, (), (key,), {})


@dataclass(frozen=True)
class _Change:
    """A parameter that has become smaller.

    Attributes:
        parameter: its name within the block.
        dim, before, after: where, and from what to what.
        reads: whether that is the input of a matrix.
    """

    parameter: str
    dim: int
    before: int
    after: int
    reads: bool

    @property
    def module(self) -> str:
        """The module that has it: a weight and its bias lie alike."""
        return self.parameter.rpartition(".")[0]


def _layouts(
    asked: Widths, fewer: int, model: PreTrainedModel, narrow: PreTrainedModel
) -> Iterator[Widths]:
    """The layouts by which the parameters of a model have become smaller."""
    changes, total = _changes(model, narrow), asked.total
    if asked.unit != "experts":
        if not (reading := [change for change in changes if change.reads]):
            raise ModelError("no matrix of its blocks reads what they make")
        if asked.unit == "ffn":
            total, fewer = reading[0].before, reading[0].before - reading[0].after
    for one in changes:
        if one.before % total or one.before * (total - fewer) != one.after * total:
            raise ModelError(f"{one.parameter} does not become smaller as they become fewer")
    query = max((one.before // total for one in changes if one.reads), default=1)
    ways = {
        (one.module, one.before): _ways(one, total, query, asked.fixed.get("head_dim", 1))
        for one in changes
    }
    for chosen in product(*ways.values()):
        parts = dict(zip(ways, chosen, strict=True))
        cuts = tuple(
            Cut(one.parameter, one.dim, parts[one.module, one.before], one.reads) for one in changes
        )
        yield Widths(asked.unit, total, cuts, asked.settings, asked.fixed)


def _ways(one: _Change, total: int, query: int, key: int) -> list[tuple[int, ...]]:
    """How the places of a structure may lie along a dimension, the likeliest first.

    Args:
        one: the parameter.
        total: how many structures it holds.
        query: places of a structure where its outputs are read.
        key: of a head's key, and of its value.
    """
    size = one.before // total
    if one.reads or size in (1, query, key):
        return [(size,)]
    ways: list[tuple[int, ...]] = [(size,)]
    if size == query + 2 * key:
        ways.append((query, key, key))
    if size % 2 == 0:
        ways.append((size // 2, size // 2))
    return ways[::-1] if query == 1 else ways  # a gate lies above its up-projection


def _changes(model: PreTrainedModel, narrow: PreTrainedModel) -> list[_Change]:
    """What has become smaller, the same in every block that has such structures.

    Raises:
        ModelError: something outside of the blocks has, nothing has, or blocks differ.
    """
    blocks, path = find_blocks(model), find_blocks(model).path + "."
    before, after = (_shapes(one) for one in (model, narrow))
    differing = {name for name in before if before[name] != after.get(name)}
    if before.keys() != after.keys() or (
        outside := [name for name in differing if not name.startswith(path)]
    ):
        told = some(outside) if before.keys() == after.keys() else "other parameters"
        raise ModelError(f"with fewer, {told} would be another")
    found: dict[str, _Change] = {}
    for index, block in enumerate(blocks.modules):
        prefix, inputs = blocks.prefix(index), _inputs(block)
        for name in block.state_dict(keep_vars=True):
            if prefix + name in differing:
                change = _change(name, before[prefix + name], after[prefix + name], inputs)
                if found.setdefault(name, change) != change:
                    raise ModelError(f"{name} is of another shape in block {index}")
    if not found and any(map(is_fused_experts, model.modules())):
        raise ModelError("they lie within its experts, which are removed whole (experts-1)")
    if not found:
        raise ModelError("its configuration makes nothing smaller")
    for index, block in enumerate(blocks.modules):
        held = block.state_dict(keep_vars=True).keys() & found.keys()
        smaller = {name for name in held if blocks.prefix(index) + name in differing}
        if held != smaller or (held and held != found.keys()):
            raise ModelError(f"block {index} would keep some of its own")
    return list(found.values())


def _change(name: str, before: torch.Size, after: torch.Size, inputs: Mapping[str, int]) -> _Change:
    """What has become smaller of one parameter."""
    dims = [dim for dim, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
    if len(dims) != 1 or after[dims[0]] > before[dims[0]]:
        raise ModelError(f"{name} would be {list(after)} in place of {list(before)}")
    dim = dims[0]
    if dim and len(before) > 2:
        raise ModelError(f"they lie within {name}, which holds several matrices")
    return _Change(name, dim, before[dim], after[dim], inputs.get(name) == dim)


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict(keep_vars=True).items()}


def _inputs(block: nn.Module) -> dict[str, int]:
    """Which dimension of a parameter is what its matrix reads, by the parameter's name."""
    alone = (matrix for matrix in find_matrices(block) if matrix.expert is None)
    return {matrix.parameter: 1 - matrix.transposed for matrix in alone}
