"""What a GGUF file says of itself, read as if a stranger had made it.

transformers' own reader walks through the header and never past the end of the file, so that no
count in it costs more than the file is long. What it found is checked here, before anything is
built: that the file is a whole model of a kind in the table, and that every tensor lies within it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import CheckpointError, closest, reason, unreadable
from secateur.gguf.kinds import KINDS, GgufKind
from secateur.gguf.library import Metadata
from secateur.machine.limits import MOST_BLOCKS, MOST_TENSORS, at_most

MAGIC = b"GGUF"
_FIXED = 24
"""Bytes of the magic, the version and the two counts."""
_AGAIN = "fetching the file again"
_WANTED = "a whole model in one GGUF file"
_NEEDED = ("context_length", "embedding_length", "block_count", "feed_forward_length",
           "attention.head_count", "attention.layer_norm_rms_epsilon")  # fmt: skip
"""Keys without which llama.cpp opens no model; transformers would take a default of its own."""


@dataclass(frozen=True)
class Header:
    """A GGUF file, checked.

    Attributes:
        path: of the file.
        kind: of the model.
        metadata: its values by their keys; lists of strings are counts.
        tensors: shape of every tensor [out, in] by its name.
        dtype: in which its values are exact.
    """

    path: Path
    kind: GgufKind
    metadata: Metadata
    tensors: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    def size(self, key: str) -> int:
        """A number that the file states of its model, such as `block_count`."""
        return int(self.metadata[f"{self.kind.arch}.{key}"])  # type: ignore[arg-type]


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        CheckpointError: it is no GGUF file, damaged, cut off, no whole model, or of a kind that is
            not read.
    """
    _check_beginning(path)
    metadata, head = _parse(path)
    kind = _kind(path, metadata)
    for key in _NEEDED:
        value = metadata.get(f"{kind.arch}.{key}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**31:
            raise CheckpointError(
                f"{kind.arch}.{key} is {'missing' if value is None else str(value)[:40]}",
                where=path,
                wanted="a positive number",
                hint=_AGAIN,
            )
    if not head.tensors:
        raise CheckpointError("a vocabulary without weights", where=path, wanted=_WANTED)
    length = path.stat().st_size
    for info in head.tensors:
        end = head.data_start + info.offset + info.nbytes
        if end > length or not all(info.shape):
            raise CheckpointError(
                f"tensor {info.name!r} {list(info.shape)} ends at byte {end:,} of {length:,}:"
                " the file is cut off or damaged",
                where=path,
                wanted=_WANTED,
                hint=_AGAIN,
            )
    blocks = metadata[f"{kind.arch}.block_count"]
    at_most(min(MOST_BLOCKS, len(head.tensors)), blocks, "blocks", where=path)
    wide = head.dtype == torch.bfloat16
    tensors = {info.name: info.shape for info in head.tensors}
    return Header(path, kind, metadata, tensors, torch.bfloat16 if wide else torch.float32)


def _check_beginning(path: Path) -> None:
    """Raise unless a file begins as GGUF, with counts that it could hold."""
    try:
        with path.open("rb") as file:
            start = file.read(_FIXED)
    except OSError as fault:
        raise unreadable(path, fault, CheckpointError) from fault
    if start[:4] != MAGIC:
        raise CheckpointError(
            f"not a GGUF file: it begins with {start[:4]!r}", where=path, wanted=repr(MAGIC)
        )
    if len(start) < _FIXED:
        raise CheckpointError("the file is cut off", where=path, wanted=_WANTED, hint=_AGAIN)
    for at, unit in ((8, "tensors"), (16, "keys")):
        count = int.from_bytes(start[at : at + 8], "little")
        at_most(MOST_TENSORS, count, unit, where=path)


def _parse(path: Path) -> tuple[dict[str, Any], Any]:
    from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

    try:
        metadata, _ = read_gguf_metadata(str(path))
        return metadata, GgufHeader.from_file(str(path))
    except Exception as fault:  # of struct, of numpy, of text that is none
        raise CheckpointError(
            f"the header cannot be read: the file is cut off, damaged, or of a newer format"
            f" ({reason(fault)})",
            where=path,
            wanted=_WANTED,
            hint=_AGAIN,
        ) from fault


def _kind(path: Path, metadata: Metadata) -> GgufKind:
    """The kind of the model that a file holds.

    Raises:
        CheckpointError: it holds no whole model, or one of another kind.
    """
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"one part of {parts} of a model",
            where=path,
            wanted=_WANTED,
            hint="joining the parts: llama-gguf-split --merge FIRST-PART FILE",
        )
    purpose = metadata.get("general.type", "model")
    if purpose != "model":
        raise CheckpointError(f"a GGUF of the type {purpose!r}", where=path, wanted=_WANTED)
    arch = str(metadata["general.architecture"])[:80]
    kind = next((kind for kind in KINDS if kind.arch == arch), None)
    if kind is None or metadata.get(f"{arch}.expert_count", 0):
        experts = " with experts" if kind else ""
        raise CheckpointError(
            f"a model of the architecture {arch!r}{experts}, which is not read from GGUF",
            where=path,
            wanted=closest(arch, [one.arch for one in KINDS]) + ", without experts",
            hint="the checkpoint in safetensors that it was made from",
        )
    return kind
