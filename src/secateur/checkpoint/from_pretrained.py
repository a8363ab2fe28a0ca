"""Lets transformers load a packed folder by `from_pretrained`, once secateur is imported.

transformers has a registry of formats for what it calls quantised weights. A packed folder is one
whose weights are given back exactly: every tensor is checked before the first is loaded, each is
unpacked on the device it goes to, and the model that comes back is a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.quantizers import (
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from secateur.checkpoint.header import read_head, read_layouts
from secateur.checkpoint.packed_folder import PACKED_INDEX, QUANT_METHOD, check_version
from secateur.errors import CheckpointError
from secateur.packing.layout import LAYOUT, MASK, PARTS, VALUES, parse_layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry of config.json that says how a packed folder is read.

    Attributes:
        quant_method: the name of the format.
        version: its version.
        dequantize: tells transformers that what it loads is a plain model.
    """

    def __init__(self, version: int | None = None, **_: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.version = version
        self.dequantize = True


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """transformers' view of the format; it calls these in the order in which they stand."""

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raise `CheckpointError` for another version, or a model that is not packed at all."""
        if not self.pre_quantized:
            raise CheckpointError("the weights are not packed", hint="secateur pack")
        check_version({"version": self.quantization_config.version}, "config.json")

    def update_device_map(self, device_map: Any) -> Any:
        """Return the map as it is; packed weights cannot be left on the disk."""
        if "disk" in (device_map.values() if isinstance(device_map, dict) else [device_map]):
            raise CheckpointError(
                "packed weights cannot stay on the disk", hint="secateur unpack, or more memory"
            )
        return device_map

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Name the files: the last that is asked before they are looked for."""
        config.transformers_weights = PACKED_INDEX
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] = (), **_: Any
    ) -> PreTrainedModel:
        with torch.device("cpu"):  # transformers builds the model on none
            self._names = [name for file in checkpoint_files for name in verify(Path(file))]
        self._model: PreTrainedModel | None = model
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *_: Any) -> list[Any]:
        """The family's own conversions, each unpacking first; and one for all other tensors.

        Newer versions of transformers also hand on the model, which is known already.
        """
        rules = [_unpacking(rule) for rule in weight_conversions]
        rules.append(WeightConverter([_join("", end) for end in PARTS], "", [Unpack()]))
        assert self._model is not None
        _check_parameters(self._names, weight_conversions, rules, self._model)
        return rules

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        self._model = None
        model._weight_conversions = None  # those above go one way; saving takes the family's own
        del model.config.transformers_weights
        return model

    def is_serializable(self) -> bool:
        """A loaded model is saved as any other: dense."""
        return True

    @property
    def is_trainable(self) -> bool:
        """A loaded model is a plain one."""
        return True


class Unpack(ConversionOps):  # type: ignore[misc]
    """Unpacks tensors, from values, mask and layout, among those that make up one parameter."""

    supports_many_to_many = True  # whatever the family's own operations make of what it gives

    def convert(
        self, input_dict: dict[str, list[Tensor]], *, full_layer_name: str, **_: Any
    ) -> dict[str, list[Tensor]]:
        """The same with the packed ones unpacked, under the pattern of the tensor they were."""
        unpacked: dict[str, list[Tensor]] = {}
        for pattern, tensors in input_dict.items():
            source, end = _split(pattern)
            if end is None:
                if _join(source, VALUES) in input_dict:
                    raise CheckpointError(f"{full_layer_name!r} is packed in part")
                unpacked[source] = tensors
            elif end == VALUES:
                masks, layouts = (input_dict[_join(source, part)] for part in (MASK, LAYOUT))
                unpacked[source or full_layer_name] = [
                    _unpack(full_layer_name, *parts)
                    for parts in zip(tensors, masks, layouts, strict=True)
                ]
        return unpacked


def verify(path: Path) -> list[str]:
    """The names of the packed matrices of a file, once each proved to be as it was written.

    Raises:
        CheckpointError: one is not.
    """
    with safe_open(path, framework="pt", device="cpu") as shard:
        matrices = read_layouts(path, read_head(path))
        for matrix in matrices.values():
            values, mask = (shard.get_tensor(part) for part in matrix.parts)
            matrix.verify(values, mask, path)
    return list(matrices)


def _unpacking(rule: Any) -> Any:
    """A conversion of the family, made to unpack first; a mere renaming as it is."""
    if not isinstance(rule, WeightConverter):
        return rule
    sources = [
        part
        for source in rule._original_source_patterns
        for part in (source, *(_join(source, end) for end in PARTS))
    ]
    return rule.copy(
        sources, list(rule._original_target_patterns), operations=[Unpack(), *rule.operations]
    )


def _check_parameters(
    names: Sequence[str], before: list[Any], after: list[Any], model: PreTrainedModel
) -> None:
    """Raise `CheckpointError` unless what is packed goes where it would go if it were not."""
    parameters, before, after = model.state_dict(), deepcopy(before), deepcopy(after)

    def parameter_of(name: str, rules: list[Any]) -> str:
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
        prefix = model.base_model_prefix
        parameter: str = rename_source_key(name, renamings, converters, prefix, parameters)[0]
        return parameter

    for name in names:
        dense = parameter_of(name, before)
        if dense in parameters and any(parameter_of(name + end, after) != dense for end in PARTS):
            raise CheckpointError(
                f"transformers has no place for packed tensor {name!r}",
                where=type(model).__name__,
                hint="secateur unpack",
            )


def _unpack(name: str, values: Tensor, mask: Tensor, layout: Tensor) -> Tensor:
    matrix = parse_layout(name, layout, values.dtype)
    if matrix is None:
        raise CheckpointError(f"packed tensor {name!r} has an impossible layout")
    return matrix.unpack(values, mask)


def _split(pattern: str) -> tuple[str, str | None]:
    """What a pattern is of, and of which part of it; None for a tensor that is not packed."""
    for end in PARTS:
        if pattern == _join("", end):
            return "", end
        if pattern.endswith(end):
            return pattern.removesuffix(end), end
    return pattern, None


def _join(source: str, end: str) -> str:
    """The pattern of one part of what `source` matches; of any tensor if it is empty."""
    return source + end if source else f"\\{end}$"
