"""A model whose blocks have fewer channels, heads or experts: what is cut of which parameter.

    ffn       a channel: a row of the matrices before the activation, a column of the one behind it
    heads     a key-value head with its queries: rows of q, k and v, columns of o
    experts   an expert: its matrices, and its row of the router

Where they lie is found in `find_widths.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from secateur.checkpoint.naming import Naming
from secateur.checkpoint.smaller import Slice, told_of_text, with_told
from secateur.checkpoint.structure import Blocks
from secateur.errors import ModelError

Kept = Sequence[Sequence[int]]
"""The numbers of the structures that stay in each block, ascending; none where it has none."""
KEEP_WIDTHS = "a pattern that leaves the widths of its blocks, such as 2:4 or blocks-1"
"""What to try where a model cannot become narrower."""


@dataclass(frozen=True)
class Cut:
    """Where the structures of a block lie in one of its parameters.

    Attributes:
        parameter: its name within the block.
        dim: the dimension along which they lie.
        parts: places that one structure takes in each of the parts that follow each other: (1, 1)
            for a gate above its up-projection.
        reads: whether it multiplies what the structures make, so that zeros here undo them.
    """

    parameter: str
    dim: int
    parts: tuple[int, ...]
    reads: bool = False

    def places(self, chosen: Sequence[int], total: int) -> Tensor:
        """The places of some of `total` structures along the dimension, int64, in order."""
        numbers, before, places = torch.tensor(chosen, dtype=torch.int64), 0, []
        for size in self.parts:
            places.append((before + numbers[:, None] * size + torch.arange(size)).flatten())
            before += size * total
        return torch.cat(places)


@dataclass(frozen=True)
class Widths:
    """The structures of a model's blocks, and how they lie in the parameters.

    Attributes:
        unit: what they are: "ffn", "heads" or "experts".
        total: how many a block has.
        cuts: the parameters that they lie in; a block has all of these or none.
        settings: keys of the configuration whose numbers grow with that of the structures.
        fixed: settings that are spelt out, as they would otherwise follow from those.
    """

    unit: str
    total: int
    cuts: tuple[Cut, ...]
    settings: tuple[str, ...]
    fixed: Mapping[str, int]

    def within(self, block: nn.Module) -> tuple[Cut, ...]:
        """The cuts of a block; none if it has no such structures."""
        held = block.state_dict(keep_vars=True)
        return tuple(cut for cut in self.cuts if cut.parameter in held)

    def config(
        self, asked: Mapping[str, Any], config: PreTrainedConfig, kept: int
    ) -> dict[str, Any]:
        """config.json of a model that keeps so many structures in every block.

        Args:
            asked: the content of config.json.
            config: what transformers made of it.
            kept: how many stay.
        """
        text, told = config.get_text_config(decoder=True), told_of_text(asked, config)
        values = dict(self.fixed)
        for key in self.settings:
            value = number_of(text, key) * kept // self.total
            values[text.attribute_map.get(key, key)] = value
            if key in told:
                values[key] = value
        return with_told(asked, config, values)


HEADS = ("num_attention_heads", "num_key_value_heads")
"""Settings that are the heads of a block, the last that there is being of key-value heads."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Settings that are the experts of a block."""


def keys_of_experts(text: PreTrainedConfig, total: int) -> tuple[str, ...]:
    """The keys by which a configuration says that a block has so many experts; it may be several.

    Args:
        text: of the decoder.
        total: how many experts a block has.
    """
    return tuple(key for key in EXPERTS if number_of(text, key) == total)


def told_of(text: PreTrainedConfig, unit: str) -> int | None:
    """How many heads or experts a configuration says there are; None if it says nothing of them.

    Args:
        text: of the decoder.
        unit: "ffn", whose channels no setting need say, "heads" or "experts".
    """
    keys = {"heads": HEADS[::-1], "experts": EXPERTS}.get(unit, ())
    told = (number_of(text, key) for key in keys)
    return next((number for number in told if isinstance(number, int) and number > 0), None)


def number_of(text: PreTrainedConfig, key: str) -> Any:
    """A number that the configuration tells of structures; None if it does not."""
    try:
        value = getattr(text, key, None)
    except Exception:  # transformers refuses to name one number where blocks have several
        return None
    if key == "n_inner" and value is None and hasattr(text, key):
        return 4 * text.hidden_size
    return value


def smaller_tensors(
    blocks: Blocks, naming: Naming, widths: Widths, kept: Kept
) -> tuple[dict[str, str | None], dict[str, Slice]]:
    """Which tensors of the files the narrower blocks are made of.

    Args:
        blocks: of the whole model.
        naming: how its parameters lie in the files.
        widths: how its structures lie.
        kept: those that stay, by block.

    Returns:
        for every tensor of a narrower parameter the name of the one that takes its place, None if
        none does; and what is left of those that are narrower themselves.

    Raises:
        ModelError: a parameter is made of tensors in a way that cannot be cut.
    """
    places: dict[str, str | None] = {}
    slices: dict[str, Slice] = {}
    for index, (block, stay) in enumerate(zip(blocks.modules, kept, strict=True)):
        for cut in widths.within(block):
            parameter = blocks.prefix(index) + cut.parameter
            stacks = naming.stacks_of(parameter)
            if stacks == [[stacks[0][0]]]:
                slices[stacks[0][0]] = Slice(cut.dim, cut.places(stay, widths.total))
            elif cut.dim == 0 and all(len(stack) == widths.total for stack in stacks):
                for stack in stacks:
                    left = [stack[number] for number in stay]
                    places.update(zip_longest(stack, left))
            else:
                raise ModelError(f"{parameter} is made of several tensors")
    return places, slices
