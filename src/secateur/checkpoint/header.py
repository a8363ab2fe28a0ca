"""Reads what the files of a model say of themselves: JSON objects, and heads of safetensors.

The head of a safetensors file has shapes and dtypes, and tells which matrices are packed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from secateur.errors import CheckpointError, unreadable
from secateur.machine.limits import MOST_JSON_BYTES, at_most
from secateur.packing import layout

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_LEVELS = {"F8_E4M3": torch.float8_e4m3fn}
"""What quantised weights may be stored as beside that."""


def read_head(
    path: Path, *, quantised: bool = False
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of one safetensors file.

    Args:
        path: of the file.
        quantised: whether config.json says that its weights are.

    Raises:
        CheckpointError: it is no such file, or holds what is no plain weight.
    """
    head: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    known = _DTYPES | _LEVELS if quantised else _DTYPES
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                view = shard.get_slice(name)
                stored = view.get_dtype()
                if stored not in known:
                    raise CheckpointError(
                        f"tensor {name!r} is stored as {stored}",
                        where=path,
                        wanted=f"one of {', '.join(known)}",
                        hint="an unquantised checkpoint",
                    )
                head[name] = (tuple(view.get_shape()), known[stored])
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(
            f"not a whole safetensors file ({fault})", where=path, hint="fetching it again"
        ) from fault
    return head


def read_layouts(path: Path, head: layout.Head) -> dict[str, layout.PackedMatrix]:
    """The packed matrices of one safetensors file, by the names of the tensors they were.

    Raises:
        CheckpointError: a part of one is missing, or they do not fit together.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            return {
                name: layout.read_layout(name, shard.get_tensor(name + layout.LAYOUT), head, path)
                for name in layout.packed_names(head)
            }
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"cannot be read ({fault})", where=path) from fault


def read_json(path: Path, wanted: str, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Args:
        path: of the file.
        wanted: what it should be.
        most: bytes that it may have.

    Raises:
        CheckpointError: it is too large, cannot be read, or is no object.
    """
    _check_readable(path)
    try:
        at_most(most, path.stat().st_size, "bytes of JSON", where=path)
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as fault:
        raise CheckpointError(
            f"not to be read as JSON ({fault})", where=path, wanted=wanted
        ) from fault
    if not isinstance(values, dict):
        raise CheckpointError(f"a JSON {type(values).__name__}", where=path, wanted=wanted)
    return values


def _check_readable(path: Path) -> None:
    """Raise `CheckpointError` for a file without rights; safetensors says that it is missing."""
    try:
        path.open("rb").close()
    except OSError as fault:
        raise unreadable(path, fault, CheckpointError) from fault
