"""Knows a folder of packed matrices by its index and its config.json.

It has `packed.safetensors.index.json` instead of transformers' own index, which says the version.
How a packed matrix lies in a file: `packing/layout.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from secateur.errors import CheckpointError

NAMED, QUANTISED = "transformers_weights", "quantization_config"
"""Keys of config.json: the file that transformers loads, and how its weights are stored."""
QUANT_METHOD, VERSION = "secateur-packed", 1
"""Name and version of the format, in config.json and in the index."""
PACKED_INDEX = "packed.safetensors.index.json"
"""Name of the index, which says which file every tensor lies in."""
NOT_LOADED = (
    "none, the weights are packed: `import secateur` before loading, or use `secateur unpack`"
)
"""Stands in config.json for the file of weights: transformers without secateur refuses it."""


def says_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes packed weights."""
    described = config.get(QUANTISED)
    return isinstance(described, dict) and described.get("quant_method") == QUANT_METHOD


def parts_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A config.json itself, then the configurations within it, such as that of the text model."""
    return [config, *(part for part in config.values() if isinstance(part, dict))]


def check_version(facts: Any, where: object) -> None:
    """Raise `CheckpointError` unless what an index says of itself is this format and version."""
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"a packed folder of version {version!r}",
            where=where,
            wanted=f"version {VERSION}",
            hint="a newer secateur",
        )


def packed_config(text: str) -> str:
    """The config.json of a packed folder, from that of the model."""
    config = json.loads(plain_config(text))
    config[QUANTISED] = {"quant_method": QUANT_METHOD, "version": VERSION}
    config[NAMED] = NOT_LOADED
    return json.dumps(config, indent=2) + "\n"


def plain_config(text: str) -> str:
    """The config.json of a result, whose weights are plain and have an index of their own."""
    config = json.loads(text)
    said = [(part, key) for part in parts_of(config) for key in (NAMED, QUANTISED) if key in part]
    if not said:
        return text
    for part, key in said:
        del part[key]
    return json.dumps(config, indent=2) + "\n"
