"""Knows a folder of packed matrices by its index and its config.json.

It has `packed.safetensors.index.json` instead of transformers' own index, which says the version.
How a packed matrix lies in a file: `packing/layout.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur.errors import CheckpointError

QUANT_METHOD, VERSION = "secateur-packed", 1
"""Name and version of the format, in config.json and in the index."""
PACKED_INDEX = "packed.safetensors.index.json"
"""Name of the index, which says which file every tensor lies in."""
NOT_LOADED = (
    "none, the weights are packed: `import secateur` before loading, or use `secateur unpack`"
)
"""Stands in config.json for the file of weights: transformers without secateur refuses it."""


def is_packed(folder: Path) -> bool:
    """Whether a model folder holds packed weights."""
    return (folder / PACKED_INDEX).is_file()


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
    config = json.loads(text)
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "version": VERSION}
    config["transformers_weights"] = NOT_LOADED
    return json.dumps(config, indent=2) + "\n"


def plain_config(text: str) -> str:
    """The config.json of the model, from that of a packed folder."""
    config = json.loads(text)
    for key in ("quantization_config", "transformers_weights"):
        config.pop(key, None)
    return json.dumps(config, indent=2) + "\n"
