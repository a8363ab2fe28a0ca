"""Reads named tensors of a folder or hub name, a few at a time: safetensors only, never pickle.

A folder is read as if a stranger had made it: an index names files beside itself and nothing else,
JSON is read up to a size, a header up to the 100 MB that the safetensors library allows, and what
is claimed is checked against what is there before anything is built from it (SECURITY.md).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.bundled import BUILTIN_MODEL, FOLDER
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.header import read_head, read_layouts
from secateur.checkpoint.packed_folder import PACKED_INDEX, check_version, is_packed
from secateur.errors import CheckpointError, PatternError
from secateur.machine.limits import MOST_JSON_BYTES, at_most
from secateur.packing import layout

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint:
    """The tensors of a model folder, by name; nothing is read before it is asked for.

    What is packed is unpacked as it is read: a packed matrix has the name, shape, dtype and bits of
    the tensor that was packed.

    Args:
        folder: holds `config.json` and `model.safetensors`, or shards with their index, packed or
            plain.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Attributes:
        files: the file that every tensor lies in.
        packed: those that are packed.

    Raises:
        CheckpointError: the folder, its configuration or its weights are missing or damaged.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.trust_remote_code = trust_remote_code
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                "no config.json",
                where=folder,
                wanted="a model folder as transformers' save_pretrained writes it",
            )
        self.files = _files_by_tensor(folder)
        self._heads = {path: read_head(path) for path in sorted(set(self.files.values()))}
        for name, path in self.files.items():
            if name not in self._heads[path]:
                raise CheckpointError(
                    f"tensor {name!r} is in the index but not in its shard",
                    where=path,
                    wanted="an index and shards of the same model",
                )
        self.packed: dict[str, layout.PackedMatrix] = {}
        if is_packed(folder):
            self._find_packed()

    @property
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        if name in self.packed:
            return self.packed[name].shape
        return self._heads[self.files[name]][name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from the header alone."""
        if name in self.packed:
            return self.packed[name].dtype
        return self._heads[self.files[name]][name][1]

    def dense_bytes(self, name: str) -> int:
        """Bytes of a tensor once it is read."""
        return prod(self.shape(name)) * self.dtype(name).itemsize

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        if name not in self.packed:
            return self.dense_bytes(name)
        head = self._heads[self.files[name]]
        parts = (head[name + part] for part in layout.PARTS)
        return sum(prod(shape) * dtype.itemsize for shape, dtype in parts)

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors to memory of their own, in the dtype that they are stored in.

        Raises:
            CheckpointError: they cannot be read, or a packed one is not as it was written.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        tensors: dict[str, Tensor] = {}
        for path, stored in by_file.items():
            try:
                with safe_open(path, framework="pt", device="cpu") as shard:
                    tensors.update({name: self._read(shard, name) for name in stored})
            except (SafetensorError, OSError) as fault:
                raise CheckpointError(f"cannot be read ({fault})", where=path) from fault
        return tensors

    def fingerprint(self) -> str:
        """The fingerprint of the model, hexadecimal: see `fingerprint.py`."""
        config = (self.folder / CONFIG).read_bytes()
        return fingerprint(config, ((name, self._parts(name)) for name in self.names))

    def _parts(self, name: str) -> list[Tensor]:
        """The stored parts of a tensor, mapped: its values and mask if it is packed."""
        parts = self.packed[name].parts if name in self.packed else (name,)
        with safe_open(self.files[name], framework="pt", device="cpu") as shard:
            return [shard.get_tensor(part) for part in parts]

    def _find_packed(self) -> None:
        """Tell packed matrices from the rest, by their layouts."""
        for path, head in self._heads.items():
            for name, matrix in read_layouts(path, head).items():
                self.packed[name] = matrix
                self.files[name] = path
                for part in (*matrix.parts, name + layout.LAYOUT):
                    self.files.pop(part, None)

    def _read(self, shard: Any, name: str) -> Tensor:
        """One tensor out of an open file."""
        if name not in self.packed:
            stored: Tensor = shard.get_tensor(name)
            return stored.clone()  # it must not keep the mapped file alive
        matrix, path = self.packed[name], self.files[name]
        values, mask = (shard.get_tensor(part) for part in matrix.parts)
        matrix.verify(values, mask, path)
        try:
            return matrix.unpack(values, mask)
        except PatternError as fault:
            raise CheckpointError(
                f"packed tensor {name!r} has {fault.what}", where=path, wanted=fault.wanted
            ) from fault


def locate(model: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model: `model` itself, the bundled one, or the snapshot of a hub name.

    Code is fetched with the model only if it is trusted.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such model or is out of reach.
    """
    if model == BUILTIN_MODEL:
        return FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"no model folder {name!r}",
            wanted="a folder, a hub name such as owner/model, or builtin",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"]
    patterns += ["*.py"] if trust_remote_code else []
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise CheckpointError(
            f"no folder {name!r} here, and no such model could be fetched from the hub"
            f" ({type(fault).__name__})",
            hint="a local folder, or check the name and the network",
        ) from fault


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    """The shard that holds each tensor, by the tensor's name."""
    index, single = folder / INDEX, folder / SINGLE
    if is_packed(folder):
        return _read_index(folder / PACKED_INDEX)
    if index.is_file():
        return _read_index(index)
    if single.is_file():
        return dict.fromkeys(read_head(single), single)
    if any(True for pattern in PICKLES for _ in folder.glob(pattern)):
        raise CheckpointError(
            "only pickled weights, which can run code when they are opened",
            where=folder,
            wanted="safetensors",
            hint=f"converting it, if you trust who made it: {conversion(folder)}",
        )
    raise CheckpointError("no weights", where=folder, wanted=f"{SINGLE}, {INDEX} or {PACKED_INDEX}")


def _read_index(index: Path) -> dict[str, Path]:
    """The shard that holds each tensor, as an index says; every shard is a file beside it."""
    wanted = "JSON with a weight_map of tensor names to files in the same folder"
    facts = read_json(index, wanted)
    if index.name == PACKED_INDEX:
        check_version(facts.get("metadata"), index)
    weight_map = facts.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=index, wanted=wanted)
    files: dict[str, Path] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != Path(file).name or file == ".." or "\0" in file:
            raise CheckpointError(
                f"tensor {name!r} is said to be in {file!r}", where=index, wanted=wanted
            )
        files[name] = index.parent / file
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise CheckpointError(
                f"shard {path.name} is missing",
                where=index.parent,
                hint="fetching the model again",
            )
    return files


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        CheckpointError: it is too large, cannot be read, or is no object.
    """
    try:
        at_most(MOST_JSON_BYTES, path.stat().st_size, "bytes of JSON", where=path)
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as fault:
        raise CheckpointError(
            f"not to be read as JSON ({fault})", where=path, wanted=wanted
        ) from fault
    if not isinstance(values, dict):
        raise CheckpointError(f"a JSON {type(values).__name__}", where=path, wanted=wanted)
    return values


def conversion(folder: Path) -> str:
    """A command that turns a folder of pickled weights into one of safetensors."""
    new = shlex.quote(f"{folder}-safetensors")
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        " [x.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for x in (M, T)]"
    )
    return f"python -c {shlex.quote(code)} {shlex.quote(str(folder))} {new}"
