"""A model without some of its blocks: the others, numbered anew, and a configuration that says so.

    files        tensor model.layers.5.* of the whole model is model.layers.4.* of this one
    config.json  the number of blocks; what it says of every block (layer_types), of some by their
                 numbers (mlp_only_layers, per_layer_config), of so many of the first
                 (first_k_dense_replace)

Nothing is copied: the files of the whole model are read under other names. That a block is still
the same is proved, not believed: its settings here, and what it computes in `blocks/gaps.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from secateur.checkpoint.smaller import told_of_text, with_told
from secateur.checkpoint.structure import Blocks
from secateur.errors import ModelError

KEEP_BLOCKS = "a pattern that removes no blocks, such as 2:4"
"""What to try where a model cannot lose blocks."""
_NUMBERS_OF_BLOCKS = re.compile(r"layers$|layer_ids$|layer_indices$")
"""Keys of lists that name some of the blocks by their numbers."""
_SO_MANY_FIRST = ("first_k_dense_replace", "max_window_layers", "moe_layer_start_index")
"""Keys of how many of the first blocks are of another kind."""
_NOT_BY_BLOCK = re.compile(r"token|architectures|label|limit|section")
"""Keys of lists whose length is that of the blocks by chance only."""
_PLAIN = (int, float, str, bool, type(None), torch.dtype)
"""Types of a module's settings that are compared."""


def names_without(
    stored: Iterable[str], by_block: Sequence[Sequence[str]], removed: Collection[int]
) -> dict[str, str]:
    """New name -> name of every tensor that stays.

    Args:
        stored: the names of all tensors in the files.
        by_block: those of every block.
        removed: the numbers of the blocks that go.

    Raises:
        ModelError: the names do not tell the numbers of their blocks.
    """
    place = _place_of_number(by_block)
    beginning = by_block[0][0].split(".")[:place]
    gone = {name for index in removed for name in by_block[index]}
    names = {}
    for name in stored:
        if name in gone:
            continue
        parts = name.split(".")
        behind = parts[place] if len(parts) > place and parts[:place] == beginning else ""
        if behind.isdecimal():  # what predicts several tokens stands behind the last block
            parts[place] = str(int(behind) - sum(index < int(behind) for index in removed))
        names[".".join(parts)] = name
    return names


def _place_of_number(by_block: Sequence[Sequence[str]]) -> int:
    """Which part of a tensor's name, between dots, is the number of its block."""
    split = [[name.split(".") for name in names] for names in by_block]
    every = [(index, parts) for index, names in enumerate(split) for parts in names]
    for place in range(min((len(parts) for _, parts in every), default=0)):
        numbered = all(parts[place] == str(index) for index, parts in every)
        if numbered and len({tuple(parts[:place]) for _, parts in every}) == 1:
            return place
    raise ModelError(
        "the names of the tensors do not tell which block they are of",
        wanted="names such as model.layers.3.mlp.up_proj.weight",
    )


def config_without(
    asked: Mapping[str, Any], config: PreTrainedConfig, removed: Collection[int]
) -> dict[str, Any]:
    """config.json of a model without some of its blocks.

    Args:
        asked: the content of config.json.
        config: what transformers made of it, which knows what follows from it for every block.
        removed: the numbers of the blocks that go.
    """
    text = config.get_text_config(decoder=True)
    total = text.num_hidden_layers
    kept = [index for index in range(total) if index not in removed]
    told = told_of_text(asked, config)
    depth = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    changed: dict[str, Any] = {depth: len(kept)}
    if "num_hidden_layers" in told:
        changed["num_hidden_layers"] = len(kept)
    for key, value in {**text.to_dict(), **told}.items():
        if key in _SO_MANY_FIRST and isinstance(value, int):
            changed[key] = sum(index < value for index in kept)
        elif not _NOT_BY_BLOCK.search(key) and (left := _of_blocks(key, value, kept, total)):
            changed[key] = left[0]
    return with_told(asked, config, changed)


def _of_blocks(key: str, value: Any, kept: Sequence[int], total: int) -> tuple[Any] | None:
    """What a setting is for the blocks that stay; None if it is of no blocks."""
    if isinstance(value, str):
        by_block = key.endswith("pattern") and len(value) == total
        return ("".join(value[index] for index in kept),) if by_block else None
    if isinstance(value, Mapping):
        by_number = {int(one): value[one] for one in value if str(one).isdecimal()}
        if not value or len(by_number) < len(value):
            return None
        return ({str(kept.index(old)): by_number[old] for old in kept if old in by_number},)
    if not isinstance(value, list | tuple):
        return None
    if len(value) == total:
        return ([value[index] for index in kept],)
    if _NUMBERS_OF_BLOCKS.search(key):
        return ([kept.index(number) for number in value if number in kept],)
    return None


def check_alike(whole: Blocks, fewer: Blocks, kept: Sequence[int]) -> None:
    """Raise unless every block that stays has the settings that it had, but for its number.

    Args:
        whole: the blocks of the whole model.
        fewer: those that stay, as the new configuration makes them.
        kept: the numbers that they had.

    Raises:
        ModelError: one is of another kind in the smaller model; says which setting.
    """
    for index, (old, module) in enumerate(zip(kept, fewer.modules, strict=True)):
        before, now = _settings(whole.modules[old]), _settings(module)
        differing = sorted(
            name
            for name in before.keys() | now.keys()
            if (before.get(name), now.get(name)) != (old, index)
            and before.get(name, ...) != now.get(name, ...)
        )
        if differing:
            raise ModelError(
                f"its configuration cannot say that block {old} is block {index} now"
                f" ({differing[0]} would be another)",
                where=type(module).__name__,
                hint=KEEP_BLOCKS,
            )


def _settings(block: nn.Module) -> dict[str, Any]:
    """What the modules of a block are, and how they are set, by name."""
    settings: dict[str, Any] = {}
    for name, module in block.named_modules():
        settings[name] = type(module)
        plain = {key: value for key, value in vars(module).items() if isinstance(value, _PLAIN)}
        settings.update({f"{name}.{key}".lstrip("."): value for key, value in plain.items()})
    settings.update({name: (tuple(one.shape), one.dtype) for name, one in block.named_parameters()})
    return settings
