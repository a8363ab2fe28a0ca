"""From a folder or hub name to named tensors, a few at a time. Safetensors only, never pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.bundled import BUILTIN_MODEL, FOLDER
from secateur.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
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


class Checkpoint:
    """The tensors of a model folder, by name; nothing is read before it is asked for.

    Args:
        folder: holds `config.json` and `model.safetensors` or shards with their index.

    Raises:
        CheckpointError: the folder, its configuration or its weights are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                "no config.json",
                where=folder,
                wanted="a model folder as transformers' save_pretrained writes it",
            )
        self.files = _files_by_tensor(folder)
        self._heads = {path: _head(path) for path in sorted(set(self.files.values()))}
        for name, path in self.files.items():
            if name not in self._heads[path]:
                raise CheckpointError(
                    f"tensor {name!r} is in the index but not in its shard", where=path
                )

    @property
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return self._heads[self.files[name]][name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from the header alone."""
        return self._heads[self.files[name]][name][1]

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors to memory of their own, in the dtype that they are stored in."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        tensors: dict[str, Tensor] = {}
        for path, wanted in by_file.items():
            try:
                with safe_open(path, framework="pt", device="cpu") as shard:
                    # clone: the tensors must not keep the mapped file alive
                    tensors.update({name: shard.get_tensor(name).clone() for name in wanted})
            except (SafetensorError, OSError) as fault:
                raise CheckpointError(f"cannot be read ({fault})", where=path) from fault
        return tensors


def locate(model: str | Path) -> Path:
    """The folder of a model: `model` itself, the bundled one, or the snapshot of a hub name.

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
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise CheckpointError(
            f"no folder {name!r} here, and no such model could be fetched from the hub"
            f" ({type(fault).__name__})",
            hint="a local folder, or check the name and the network",
        ) from fault


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    """Which shard holds each tensor."""
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(str(file)).name for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise CheckpointError(
                f"the index cannot be read ({type(fault).__name__}: {fault})",
                where=index,
                wanted="JSON with a weight_map of tensor names to shard files",
            ) from fault
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise CheckpointError(f"shard {path.name} is missing", where=folder)
        return files
    if single.is_file():
        return dict.fromkeys(_head(single), single)
    if any(True for pattern in PICKLES for _ in folder.glob(pattern)):
        raise CheckpointError(
            "only pickled weights, which can run code when they are opened",
            where=folder,
            wanted="safetensors",
            hint="converting it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)",
        )
    raise CheckpointError("no weights", where=folder, wanted=f"{SINGLE} or {INDEX}")


def _head(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of one safetensors file."""
    head: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    try:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                view = shard.get_slice(name)
                stored = view.get_dtype()
                if stored not in _DTYPES:
                    raise CheckpointError(
                        f"tensor {name!r} is stored as {stored}",
                        where=path,
                        wanted=f"one of {', '.join(_DTYPES)}",
                        hint="an unquantised checkpoint",
                    )
                head[name] = (tuple(view.get_shape()), _DTYPES[stored])
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"not a whole safetensors file ({fault})", where=path) from fault
    return head
