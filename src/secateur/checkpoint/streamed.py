"""A model's structure without its weights; any one block can be made real, and let go again.

Peak memory is what is real at the moment: one block, or the surroundings of the blocks (embedding,
final norm, output head). transformers' own rules make the parameters of the model from the tensors
in the files (`naming.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
)

from secateur.checkpoint.background import ReadAhead
from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.fingerprint import SourceFiles
from secateur.checkpoint.naming import Naming, NotStreamableError
from secateur.checkpoint.no_model import missing_weights
from secateur.checkpoint.packed_folder import NAMED, QUANTISED
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import unrounded
from secateur.checkpoint.structure import find_blocks
from secateur.errors import CheckpointError, ModelError
from secateur.machine.memory import give_back

MOST_BUFFER_BYTES = 2**30
"""Most bytes of the tables that a model computes for itself, such as rotary frequencies: real ones
take some megabytes, and a configuration can ask for any size."""


class StreamedModel(BlockModel):
    """A language model or a classifier of images on disk, made real piece by piece.

    Attributes:
        model: the skeleton; parameters are on the meta device unless their piece is open.
        blocks: the decoder blocks.
        device, dtype: where and in what precision open pieces are.
        checkpoint: where the weights come from.
        naming: which tensors of the files make up each parameter.
    """

    streamed = True

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Build the skeleton.

        Raises:
            NotStreamableError: see `Naming`; or a block's weights are not its own.
            CheckpointError: weights are missing or misshapen.
            ModelError: the architecture is unknown or has no blocks that can be told.
        """
        self.model = _empty_model(read_config(checkpoint), checkpoint)
        self.checkpoint, self.notices = checkpoint, checkpoint.notices
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(self.model)
        self.naming = Naming(self.model, checkpoint)
        self._missing = set(self.model.state_dict()) - set(self.naming.parameters)
        _check_complete(self.model, self._missing, self.naming, checkpoint)
        if any(name.startswith(self.blocks.path + ".") for name in self._missing):
            raise NotStreamableError("blocks share weights with each other, or with the rest")
        for name, _ in self.model.named_buffers():
            set_module_tensor_to_device(self.model, name, device)
        self._ahead = ReadAhead(
            lambda index: checkpoint.load(self.block_tensors(index)),
            lambda index: sum(map(checkpoint.dense_bytes, self.block_tensors(index))),
            len(self.blocks),
        )

    @contextmanager
    def open_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block with its weights; they are let go at the end."""
        names = self.block_parameters(index)
        try:
            self._fill(names, self._ahead.take(index))
            yield self.blocks.modules[index]
        finally:
            self._empty(names)

    @contextmanager
    def open_surroundings(self) -> Iterator[PreTrainedModel]:
        """The model with everything real but its blocks."""
        prefix = self.blocks.path + "."
        names = [name for name in self.naming.parameters if not name.startswith(prefix)]
        try:
            self._fill(names, self._read(names))
            self.model.tie_weights(missing_keys=set(self._missing), recompute_mapping=False)
            yield self.model
        finally:
            self._empty([*names, *(name for name in self._missing if not name.startswith(prefix))])

    def block_parameters(self, index: int) -> list[str]:
        """Stored parameters and buffers of one block, in the model's own spelling."""
        prefix = self.blocks.prefix(index)
        return [name for name in self.naming.parameters if name.startswith(prefix)]

    def block_tensors(self, index: int) -> list[str]:
        """The names of the tensors of one block in the files."""
        names = self.block_parameters(index)
        return [stored for name in names for stored in self.naming.tensors_of(name)]

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype in which the files hold a parameter."""
        return self.checkpoint.dtype(self.naming.tensors_of(name)[0])

    @property
    def unused(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of the files that the model makes nothing of, by name there."""
        naming, checkpoint = self.naming, self.checkpoint
        used = {stored for name in naming.parameters for stored in naming.tensors_of(name)}
        return {name: checkpoint.shape(name) for name in checkpoint.names if name not in used}

    def fingerprint(self) -> str:
        """The fingerprint of the model: that of its files."""
        return self.checkpoint.fingerprint()

    def watch(self) -> SourceFiles:
        """The files, every byte of which is hashed from now on as it is read."""
        self.checkpoint.source.watch()
        return self.checkpoint.source

    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one block as the files hold them, with new values: see `BlockModel`."""
        tensors = self.checkpoint.load(self.block_tensors(index))
        for name, value in changed.items():
            for stored, new in self.naming.part(name, value).items():
                old = tensors[stored]
                tensors[stored] = unrounded(new.to("cpu", old.dtype), old, self.dtype).contiguous()
        return tensors

    def stored_surroundings(self) -> dict[str, Tensor]:
        """The tensors that are in no block, bit for bit as they are in the files."""
        inside = {
            stored for index in range(len(self.blocks)) for stored in self.block_tensors(index)
        }
        return self.checkpoint.load([name for name in self.checkpoint.names if name not in inside])

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        """Read the tensors that some parameters are made of, by their names in the files."""
        return self.checkpoint.load(
            [tensor for name in names for tensor in self.naming.tensors_of(name)]
        )

    def _fill(self, names: list[str], tensors: dict[str, Tensor]) -> None:
        """Make parameters real; `tensors` is emptied."""
        for name in names:
            stored = {tensor: tensors.pop(tensor) for tensor in self.naming.tensors_of(name)}
            value = self.naming.join(name, stored)
            dtype = self.dtype if value.is_floating_point() else None
            set_module_tensor_to_device(self.model, name, self.device, value=value, dtype=dtype)

    def _empty(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.model, name, "meta")
        give_back()


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The model's configuration; code beside the weights is run only where it is trusted.

    Raises:
        CheckpointError: it cannot be read, or asks for remote code.
    """
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
        )
    except Exception as fault:  # every family checks in its own way, with its own exceptions
        raise CheckpointError(
            f"the configuration is not one that transformers knows ({reason(fault)})",
            where=checkpoint.folder / "config.json",
            hint="a newer transformers; or --trust-remote-code, if the model comes with code of its"
            " own and you trust who wrote it",
        ) from fault
    for part in {
        id(part): part for part in (config, config.get_text_config(decoder=True))
    }.values():
        for key in (NAMED, QUANTISED):
            if hasattr(part, key):
                delattr(part, key)  # they tell transformers how to read what is read here
    return config


def _empty_model(config: PreTrainedConfig, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model on the meta device, its computed buffers real.

    It is built without buffers first: a configuration can ask for any size, and costs nothing so.

    Raises:
        ModelError: no model can be built whose blocks are pruned, or not one that these files fill.
    """
    own_code = checkpoint.trust_remote_code and "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    kind = AutoModelForCausalLM if own_code else auto_class(config)
    if kind is None:
        raise ModelError(
            f"{config.model_type!r} is no causal language model of transformers",
            where=checkpoint.folder,
            wanted="a decoder, such as Llama or GPT-2, or a classifier of images, such as ViT",
        )
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if isinstance(depth, int) and depth > len(checkpoint.files):
        raise CheckpointError(
            f"config.json says {depth} hidden layers, the files hold {len(checkpoint.files)}"
            " tensors",
            where=checkpoint.folder,
            wanted="a configuration and weights of the same model",
        )
    try:
        for include_buffers in (True, False):
            with init_empty_weights(include_buffers=include_buffers), no_init_weights():
                model = kind.from_config(config, trust_remote_code=checkpoint.trust_remote_code)
            taken = sum(buffer.nbytes for buffer in model.buffers())
            if taken > MOST_BUFFER_BYTES:
                raise ModelError(
                    f"config.json asks for tables of {taken:.3g} bytes",
                    where=checkpoint.folder,
                    wanted=f"at most {MOST_BUFFER_BYTES:.3g}",
                )
    except ModelError:
        raise
    except Exception as fault:  # every family fails in its own way on sizes that make no model
        raise ModelError(
            f"no model can be built from config.json ({reason(fault)})",
            where=checkpoint.folder,
            hint="the config.json that belongs to the weights",
        ) from fault
    _refuse_encoders(config, model, checkpoint)
    return model.eval().requires_grad_(False)


def auto_class(config: PreTrainedConfig) -> Any:
    """The class that makes a model from a configuration; None if it has no blocks to prune."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return AutoModelForImageClassification
    return None


def _refuse_encoders(
    config: PreTrainedConfig, model: PreTrainedModel, checkpoint: Checkpoint
) -> None:
    """Raise for BERT and its kin, which transformers would run as a decoder that sees ahead."""
    name, claimed = type(model).__name__, config.architectures or []
    if getattr(config, "is_decoder", None) is False and name not in claimed:
        raise ModelError(
            f"an encoder that sees ahead ({', '.join(claimed) or config.model_type})",
            where=checkpoint.folder,
            wanted=f"a decoder, whose config.json has is_decoder or architectures [{name}]",
        )


def _check_complete(
    model: PreTrainedModel, missing: set[str], naming: Naming, checkpoint: Checkpoint
) -> None:
    """Raise unless every missing parameter is tied to one that the files hold."""
    ties = model.all_tied_weights_keys.items()
    tied = {a for target, source in ties for a, b in ((target, source), (source, target))
            if b not in missing}  # fmt: skip
    absent = sorted(missing - tied)
    if absent:
        used = {tensor for name in naming.parameters for tensor in naming.tensors_of(name)}
        raise missing_weights(absent, {*checkpoint.names} - used, checkpoint.folder)


def reason(fault: Exception) -> str:
    """The text of another library's exception on one line of bearable length."""
    said = " ".join(str(fault).split())
    if len(said) > 200:
        said = f"{said[:200]}..."
    return said if " " in said else f"{type(fault).__name__} {said}".strip()
