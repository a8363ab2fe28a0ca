"""Files of an unfinished run that prove themselves: each holds the SHA-256 of what stands in it.

A file that was damaged, cut off or put in another's place is told from the one that was written,
before anything in it is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.checkpoint.durable import write_tensors, write_text
from secateur.checkpoint.fingerprint import sha256_of
from secateur.errors import CheckpointError
from secateur.machine.limits import MOST_JSON_BYTES, at_most

PROOF = "sha256"
"""Where a file has its checksum: a key of a JSON object, or of the metadata of tensors."""


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """A JSON object with its own checksum, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps({"facts": facts, PROOF: _of_text(path, json.dumps(facts))}, indent=1)
    write_text(path, text + "\n")


def read_facts(path: Path) -> dict[str, Any]:
    """What `write_facts` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not what was written.
    """
    try:
        at_most(MOST_JSON_BYTES, path.stat().st_size, "bytes of JSON", where=path)
        both = json.loads(path.read_text(encoding="utf-8"))
        facts: dict[str, Any] = both["facts"]
        if both[PROOF] != _of_text(path, json.dumps(facts)):
            raise ValueError("its checksum is another")
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as fault:
        raise damaged("state", path, fault) from fault
    return facts


def write_proved(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """A safetensors file with `facts` and its own checksum in its header, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    facts = dict(facts or {})
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(path, stored, {**facts, PROOF: _of_tensors(path, stored, facts)})


def read_proved(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in memory of their own, and facts, as `write_proved` was given them.

    Raises:
        CheckpointError: the file is not there, or not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            # clone: on a CPU, what comes back is the mapped file itself
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as fault:
        raise damaged("tensors", path, fault) from fault
    facts.pop("format", None)
    proof = facts.pop(PROOF, None)
    if proof != _of_tensors(path, tensors, facts):
        raise damaged("tensors", path, "their checksum is another")
    return tensors, facts


def write_batches(path: Path, streams: Mapping[str, list[Tensor]]) -> None:
    """Keep hidden states by batch, bit for bit."""
    tensors = {
        f"{name}.{number}": hidden
        for name, batches in streams.items()
        for number, hidden in enumerate(batches)
    }
    write_proved(path, tensors)


def read_batches(path: Path, like: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Read what `write_batches` wrote, to the devices of `like`, whose shapes and dtypes it has.

    Raises:
        CheckpointError: it is not there, or not what was written, or not of these shapes.
    """
    stored, _ = read_proved(path)
    streams: dict[str, list[Tensor]] = {}
    for name, batches in like.items():
        hidden = [stored.get(f"{name}.{number}") for number in range(len(batches))]
        streams[name] = [
            new.to(old.device)
            for old, new in zip(batches, hidden, strict=True)
            if new is not None and (new.shape, new.dtype) == (old.shape, old.dtype)
        ]
        if len(streams[name]) < len(batches):
            raise damaged("hidden states", path, f"{name} is not what it was")
    return streams


def damaged(what: str, where: Path, fault: object) -> CheckpointError:
    """The error for a part of an unfinished run that cannot be believed."""
    return CheckpointError(
        f"the {what} of an unfinished run cannot be read ({fault})", where=where, hint="--restart"
    )


def _of_text(path: Path, text: str) -> str:
    return hashlib.sha256(f"{path.name} {text}".encode()).hexdigest()


def _of_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Of the name of the file, its facts, and the name, shape, dtype and bytes of every tensor."""
    lines = [path.name, json.dumps(facts, sort_keys=True)]
    for name, value in sorted(tensors.items()):
        lines.append(f"{name} {tuple(value.shape)} {value.dtype} {sha256_of([value])}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
