"""A model's structure without its weights; any one block can be made real, and let go again.

Peak memory is what is real at the moment: one block, or the surroundings of the blocks (embedding,
final norm, output head). transformers' own rules map the names in the files to the parameters of
the model; a family whose files need more than new names cannot be streamed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights

from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.structure import find_blocks
from secateur.errors import CheckpointError, ModelError

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc keeps what was freed between what was not, more with every block; this gives it back."""


class NotStreamableError(Exception):
    """The files need conversion, not only other names: the model has to be loaded whole."""


class StreamedModel:
    """A causal language model on disk, made real piece by piece.

    Attributes:
        model: the skeleton; parameters are on the meta device unless their piece is open.
        blocks: the decoder blocks.
        device, dtype: where and in what precision open pieces are.
        checkpoint: where the weights come from.
        stored_name: parameter name in the model -> tensor name in the files.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Build the skeleton.

        Raises:
            NotStreamableError: the files need conversion, or a block's weights are not its own.
            CheckpointError: weights are missing or misshapen.
            ModelError: the architecture is unknown or has no blocks that can be told.
        """
        self.model = _empty_model(read_config(checkpoint), checkpoint)
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(self.model)
        self.stored_name = _map_names(self.model, checkpoint)
        self._missing = {name for name in self.model.state_dict() if name not in self.stored_name}
        _check_complete(self.model, self._missing, checkpoint)
        if any(name.startswith(self.blocks.path + ".") for name in self._missing):
            raise NotStreamableError("blocks share weights with each other, or with the rest")
        for name, _ in self.model.named_buffers():
            set_module_tensor_to_device(self.model, name, device)

    @contextmanager
    def open_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block with its weights; they are let go at the end."""
        names = self.block_parameters(index)
        try:
            self._fill(names)
            yield self.blocks.modules[index]
        finally:
            self._empty(names)

    @contextmanager
    def open_surroundings(self) -> Iterator[PreTrainedModel]:
        """The model with everything real but its blocks."""
        prefix = self.blocks.path + "."
        names = [name for name in self.stored_name if not name.startswith(prefix)]
        try:
            self._fill(names)
            self.model.tie_weights(missing_keys=set(self._missing), recompute_mapping=False)
            yield self.model
        finally:
            self._empty([*names, *(name for name in self._missing if not name.startswith(prefix))])

    def block_parameters(self, index: int) -> list[str]:
        """Stored parameters and buffers of one block, in the model's own spelling."""
        prefix = self.blocks.prefix(index)
        return [name for name in self.stored_name if name.startswith(prefix)]

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype in which the files hold a parameter."""
        return self.checkpoint.dtype(self.stored_name[name])

    def _fill(self, names: list[str]) -> None:
        tensors = self.checkpoint.load([self.stored_name[name] for name in names])
        for name in names:
            value = tensors.pop(self.stored_name[name])
            dtype = self.dtype if value.is_floating_point() else None
            set_module_tensor_to_device(self.model, name, self.device, value=value, dtype=dtype)

    def _empty(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.model, name, "meta")
        if _malloc_trim is not None:
            _malloc_trim(0)


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The model's configuration; code beside the weights is never run.

    Raises:
        CheckpointError: it cannot be read, asks for remote code, or describes quantised weights.
    """
    where = checkpoint.folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as fault:
        raise CheckpointError(
            f"the configuration is not one that transformers knows ({_first_line(fault)})",
            where=where,
            hint="a newer transformers, or an architecture that needs no remote code",
        ) from fault
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            "the weights are quantised", where=where, wanted="float32, bfloat16 or float16 weights"
        )
    return config


def _empty_model(config: PreTrainedConfig, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model on the meta device, its computed buffers real."""
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as fault:
        raise ModelError(
            f"{config.model_type!r} is no causal language model of transformers"
            f" ({_first_line(fault)})",
            where=checkpoint.folder,
        ) from fault
    return model.eval().requires_grad_(False)


def _map_names(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Parameter names of the model -> tensor names in the files, by transformers' renaming rules.

    Raises:
        NotStreamableError: a tensor has to be converted, not only renamed.
        CheckpointError: a tensor does not have the shape that the configuration implies, or a
            parameter is stored under two names.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in transforms if not isinstance(rule, WeightRenaming)]
    wanted = model.state_dict()
    stored_name: dict[str, str] = {}
    for stored in checkpoint.names:
        name, converted_by = rename_source_key(
            stored, renamings, converters, model.base_model_prefix, wanted
        )
        if converted_by is not None:
            raise NotStreamableError(f"{stored} needs conversion to {name}")
        if name not in wanted:
            continue  # not part of the model (an old buffer, an extra head): copied, not used
        if tuple(wanted[name].shape) != checkpoint.shape(stored):
            raise CheckpointError(
                f"tensor {stored!r} has shape {list(checkpoint.shape(stored))}",
                where=checkpoint.files[stored],
                wanted=f"{list(wanted[name].shape)}, as config.json says",
            )
        if name in stored_name:
            raise CheckpointError(
                f"tensors {stored_name[name]!r} and {stored!r} are both {name!r}",
                where=checkpoint.folder,
                wanted="every weight once",
            )
        stored_name[name] = stored
    return stored_name


def _check_complete(model: PreTrainedModel, missing: set[str], checkpoint: Checkpoint) -> None:
    """Raise unless every missing parameter is tied to one that the files hold."""
    ties = model.all_tied_weights_keys.items()
    tied = {a for target, source in ties for a, b in ((target, source), (source, target))
            if b not in missing}  # fmt: skip
    absent = sorted(missing - tied)
    if absent:
        raise CheckpointError(
            f"{len(absent)} weights are missing, such as {absent[0]!r}",
            where=checkpoint.folder,
            wanted="every weight of the architecture in config.json",
        )


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
