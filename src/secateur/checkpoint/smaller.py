"""The files of a model read as those of a smaller one: other names, narrower tensors, its config.

Nothing is copied. A tensor of the smaller model is one of the whole model's under the name that it
has now, or some of its rows or columns. Which ones is found in `fewer_blocks.py` and `narrower.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.weight_files import CONFIG


@dataclass(frozen=True)
class Slice:
    """What is left of a tensor along one dimension.

    Attributes:
        dim: the dimension.
        places: int64, the places along it that stay, ascending.
    """

    dim: int
    places: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """What is left of a tensor, in memory of its own."""
        return tensor.index_select(self.dim, self.places.to(tensor.device))


class SmallerCheckpoint(Checkpoint):
    """The tensors of a checkpoint as they are in a smaller model.

    Args:
        whole: the checkpoint of the whole model.
        config: the configuration of the smaller one, as config.json is to hold it.
        names: name of every tensor of the smaller model -> its name in the files.
        slices: what is left of those that are narrower, by their names in the smaller model.
    """

    def __init__(
        self,
        whole: Checkpoint,
        config: dict[str, Any],
        names: Mapping[str, str],
        slices: Mapping[str, Slice] | None = None,
    ) -> None:
        self._whole, self._names, self._slices = whole, names, dict(slices or {})
        self.folder, self.trust_remote_code = whole.folder, whole.trust_remote_code
        self.config = config
        self.files = {new: whole.files[old] for new, old in names.items()}
        self.packed = {
            new: whole.packed[old]
            for new, old in names.items()
            if old in whole.packed and new not in self._slices
        }
        self.quantised = {
            new: whole.quantised[old]
            for new, old in names.items()
            if old in whole.quantised and new not in self._slices
        }
        self.weight_files, self.idle_weight_files = whole.weight_files, whole.idle_weight_files
        self.source = whole.source

    def make_config(self) -> PreTrainedConfig:
        """The configuration of the smaller model, as transformers will read it."""
        whole = self._whole.make_config()
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(self.new_config, encoding="utf-8")
            told, _ = type(whole).get_config_dict(folder)
        made: PreTrainedConfig = type(whole).from_dict(told)
        if _has_attention(whole) and not _has_attention(made):
            raise ValueError("no block with attention would be left, which a cache counts by")
        return made

    @property
    def new_config(self) -> str:
        """config.json of the smaller model."""
        return json.dumps(self.config, indent=2) + "\n"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        shape = self._whole.shape(self._names[name])
        if (left := self._slices.get(name)) is None:
            return shape
        return (*shape[: left.dim], len(left.places), *shape[left.dim + 1 :])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from the header alone."""
        return self._whole.dtype(self._names[name])

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in its file, or once it is written, if it is narrower."""
        if name in self._slices:
            return self.dense_bytes(name)
        return self._whole.stored_bytes(self._names[name])

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors, see `Checkpoint.load`."""
        asked = list(names)
        read = self._whole.load(self._names[name] for name in asked)
        return {name: self._left(name, read[self._names[name]]) for name in asked}

    def _left(self, name: str, tensor: Tensor) -> Tensor:
        return self._slices[name].of(tensor) if name in self._slices else tensor

    def _parts(self, name: str) -> list[Tensor]:
        if name in self._slices:
            return list(self.load([name]).values())
        return self._whole._parts(self._names[name])


def told_of_text(asked: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """What config.json says of the decoder: all of it, or the part of it that is the decoder's.

    Args:
        asked: the content of config.json.
        config: what transformers made of it.
    """
    inside = _key_of_text(asked, config)
    return dict(asked if inside is None else asked[inside])


def with_told(
    asked: Mapping[str, Any], config: PreTrainedConfig, changed: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json with other settings of the decoder.

    Args:
        asked: the content of config.json.
        config: what transformers made of it.
        changed: the new values.
    """
    told, inside = {**told_of_text(asked, config), **changed}, _key_of_text(asked, config)
    return told if inside is None else {**asked, inside: told}


def _key_of_text(asked: Mapping[str, Any], config: PreTrainedConfig) -> str | None:
    """Where config.json speaks of the decoder, if it does so in a part of its own."""
    text = config.get_text_config(decoder=True)
    parts = (key for key, value in asked.items() if isinstance(value, Mapping))
    return next((key for key in parts if getattr(config, key, None) is text), None)


def _has_attention(config: PreTrainedConfig) -> bool:
    """Whether transformers can tell from a cache how many tokens it has seen."""
    try:
        DynamicCache(config=config.get_text_config(decoder=True)).get_seq_length()
    except ValueError:
        return False
    return True
