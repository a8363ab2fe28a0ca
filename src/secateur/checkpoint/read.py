"""Reads named tensors of a model folder, a few at a time: safetensors only, never pickle.

A folder is read as if a stranger had made it: an index names files beside itself and nothing else,
JSON is read up to a size, a header up to the 100 MB that the safetensors library allows, and what
is claimed is checked against what is there before anything is built from it (SECURITY.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from secateur.checkpoint.compressed import CompressedMatrix, described, find_compressed
from secateur.checkpoint.fingerprint import SourceFiles, fingerprint
from secateur.checkpoint.from_gguf import notice_of
from secateur.checkpoint.header import read_layouts
from secateur.checkpoint.no_model import no_config
from secateur.checkpoint.packed_folder import PACKED_INDEX, says_packed
from secateur.checkpoint.weight_files import CONFIG, INDEX, config_of, find_weights, names_in
from secateur.errors import CheckpointError, PatternError, some
from secateur.packing import layout

WATCHED = (CONFIG, INDEX, PACKED_INDEX, "generation_config.json", "tokenizer.json",
           "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
           "merges.txt", "preprocessor_config.json", "chat_template.jinja")  # fmt: skip
"""Files beside the weights that a run reads: they must be the same at its end."""


class Checkpoint:
    """The tensors of a model folder, by name; nothing is read before it is asked for.

    What is packed is unpacked as it is read: a packed matrix has the name, shape, dtype and bits of
    the tensor that was packed. A quantised one has those of its values.

    Args:
        folder: holds `config.json` and weights, packed or plain, in one file or in shards.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Attributes:
        config: the content of `config.json`.
        files: the file that every tensor lies in.
        packed: those that are packed.
        quantised: those that are quantised.
        weight_files: the files that are loaded, sorted.
        idle_weight_files: files of the folder that look like weights, or like an index of some, and
            are not loaded, sorted.
        source: the files, as they were when the folder was opened.

    Raises:
        CheckpointError: the folder, its configuration or its weights are missing or damaged.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.trust_remote_code = trust_remote_code
        if CONFIG not in (names := names_in(folder)):
            raise no_config(folder, names)
        self.config = config_of(folder)
        weights = find_weights(folder, self.config)
        self.files, self._heads = weights.tensors, weights.heads
        self.weight_files, self.idle_weight_files = tuple(weights.heads), weights.idle
        self.packed: dict[str, layout.PackedMatrix] = {}
        if says_packed(self.config):
            self._find_packed()
        self.quantised: dict[str, CompressedMatrix] = {}
        if (told := described(self.config)) is not None:
            self._find_quantised(told)
        beside = [path for path in folder.iterdir() if path.name in WATCHED and path.is_file()]
        self.source = SourceFiles(self.files, beside, self._parts)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was read and what was not, if the folder has other weights that could be meant, was
        made from a GGUF file, or is quantised.
        """
        told = [made] if (made := notice_of(self.folder)) is not None else []
        if idle := [path.name for path in self.idle_weight_files if ".safetensors" in path.name]:
            read = [path.name for path in self.weight_files]
            told = [
                f"{self.folder}: weights are read from {some(read)}, as transformers does,"
                f" and not from {some(idle)}"
            ]
        if self.quantised:
            kinds = sorted({matrix.title for matrix in self.quantised.values()})
            told.append(
                f"{self.folder}: {len(self.quantised)} matrices are quantised"
                f" ({'; '.join(kinds)}), and their values are read"
            )
        return tuple(told)

    def stored_files(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The names of the files of weights, one after the other, and their tensors as stored."""
        for path in self.weight_files:
            yield path.name, load_file(path)

    def make_config(self) -> PreTrainedConfig:
        """What transformers makes of the configuration, by whatever exceptions it fails."""
        made: PreTrainedConfig = AutoConfig.from_pretrained(
            self.folder, trust_remote_code=self.trust_remote_code
        )
        return made

    @property
    def new_config(self) -> str | None:
        """What config.json of a result is to hold, if it is not what the folder's holds."""
        return None

    @property
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        if (matrix := self._made.get(name)) is not None:
            return matrix.shape
        return self._heads[self.files[name]][name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from the header alone."""
        if (matrix := self._made.get(name)) is not None:
            return matrix.dtype
        return self._heads[self.files[name]][name][1]

    def elements(self, name: str) -> int:
        """How many numbers a tensor has."""
        return prod(self.shape(name))

    def dense_bytes(self, name: str) -> int:
        """Bytes of a tensor once it is read."""
        return self.elements(name) * self.dtype(name).itemsize

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        if (matrix := self._made.get(name)) is None:
            return self.dense_bytes(name)
        head = self._heads[self.files[name]]
        layouts = (name + layout.LAYOUT,) if name in self.packed else ()
        parts = (head[part] for part in (*matrix.parts, *layouts))
        return sum(prod(shape) * dtype.itemsize for shape, dtype in parts)

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors to memory of their own, in the dtype that they are stored in.

        Raises:
            CheckpointError: they cannot be read, a packed one is not as it was written, or one is
                not what it was when a run read it before.
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

    def scales(self, name: str) -> Tensor:
        """The scales of a quantised matrix, as they are stored."""
        scale = self.quantised[name].scale_name
        with safe_open(self.files[name], framework="pt", device="cpu") as shard:
            stored: Tensor = shard.get_tensor(scale)
        return stored.clone()

    def fingerprint(self) -> str:
        """The fingerprint of the model, hexadecimal: see `fingerprint.py`."""
        config = (self.folder / CONFIG).read_bytes()
        return fingerprint(config, ((name, self._parts(name)) for name in self.names))

    def _parts(self, name: str) -> list[Tensor]:
        """The stored parts of a tensor, mapped: several if it is packed or quantised."""
        parts = self._made[name].parts if name in self._made else (name,)
        with safe_open(self.files[name], framework="pt", device="cpu") as shard:
            return [shard.get_tensor(part) for part in parts]

    @property
    def _made(self) -> Mapping[str, layout.PackedMatrix | CompressedMatrix]:
        """What is made of several stored tensors, or of one of another dtype."""
        return self.quantised or self.packed

    def _find_quantised(self, told: Mapping[str, Any]) -> None:
        """Tell quantised matrices from the rest, by their scales."""
        for path, head in self._heads.items():
            with safe_open(path, framework="pt", device="cpu") as shard:
                shapes = {
                    name.removesuffix("_shape"): tuple(shard.get_tensor(name).tolist())
                    for name in head
                    if name.endswith("weight_shape") and head[name] == ((2,), torch.int64)
                }
            for matrix in find_compressed(told, head, shapes, path):
                for part in matrix.parts:
                    self.files.pop(part, None)
                self.quantised[matrix.name] = matrix
                self.files[matrix.name] = path
        for name, path in self.files.items():
            if name not in self.quantised and self.dtype(name) == torch.float8_e4m3fn:
                raise CheckpointError(f"tensor {name!r} is quantised without a scale", where=path)

    def _find_packed(self) -> None:
        """Tell packed matrices from the rest, by their layouts."""
        for path, head in self._heads.items():
            for name, matrix in read_layouts(path, head).items():
                if name in self.files:
                    raise CheckpointError(
                        f"tensor {name!r} is packed and plain at once",
                        where=path,
                        wanted="every tensor once",
                    )
                self.packed[name] = matrix
                self.files[name] = path
                for part in (*matrix.parts, name + layout.LAYOUT):
                    self.files.pop(part, None)

    def _read(self, shard: Any, name: str) -> Tensor:
        """One tensor out of an open file."""
        if name in self.quantised:
            return self._read_quantised(shard, self.quantised[name])
        if name not in self.packed:
            stored: Tensor = shard.get_tensor(name).clone()  # the mapped file must not live on
            if self.source.watched:
                self.source.saw(name, [stored])
            return stored
        matrix, path = self.packed[name], self.files[name]
        values, mask = (shard.get_tensor(part) for part in matrix.parts)
        if self.source.watched:
            self.source.saw(name, [values, mask])
        matrix.verify(values, mask, path)
        try:
            return matrix.unpack(values, mask)
        except PatternError as fault:
            raise CheckpointError(
                f"packed tensor {name!r} has {fault.what}", where=path, wanted=fault.wanted
            ) from fault

    def _read_quantised(self, shard: Any, matrix: CompressedMatrix) -> Tensor:
        """The values of a quantised matrix out of an open file."""
        parts = [shard.get_tensor(part) for part in matrix.parts]
        if self.source.watched:
            self.source.saw(matrix.name, parts)
        return matrix.unpack(parts)
