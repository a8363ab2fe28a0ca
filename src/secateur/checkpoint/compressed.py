"""Quantised matrices in the files, as engines read them: read by compressed-tensors.

    pack-quantized      NAME_packed   int32, levels of 4 or 8 bits side by side
                        NAME_scale    [out, groups];  NAME_shape  int64 [2]
                        NAME_zero_point  int32, packed likewise, where the grid is not symmetric
    float-quantized     NAME          float8_e4m3fn [out, in];  NAME_scale  [out, 1]

NAME is that of the matrix, ".../q_proj.weight". What the levels mean is said by the
`quantization_config` of config.json. The library unpacks, and computes the values; a folder that
it describes in any other way is refused by `conversion.py`. How they are written:
`compressed_writing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from secateur.checkpoint.packed_folder import QUANTISED
from secateur.errors import CheckpointError, SecateurError, reason
from secateur.packing.layout import Head

METHOD = "compressed-tensors"
"""What config.json calls the method."""
PACKED, FLOAT = "pack-quantized", "float-quantized"
READ_FORMATS = (PACKED, FLOAT, "int-quantized", "naive-quantized")
"""The formats that are read; the first two are written."""
_SCALE, _LEVELS, _SHAPE, _ZERO = "_scale", "_packed", "_shape", "_zero_point"
_ENDS = (_LEVELS, _SCALE, _SHAPE, _ZERO)


def tensors_library() -> Any:
    """The library.

    Raises:
        SecateurError: it is not installed.
    """
    try:
        import compressed_tensors.compressors
        import compressed_tensors.quantization
    except ImportError as fault:
        raise SecateurError(
            "quantised weights need the compressed-tensors library",
            hint="pip install 'secateur[quantize]'",
        ) from fault
    return compressed_tensors


def described(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of quantised weights that are read here; None if it does not."""
    told = config.get(QUANTISED)
    if not isinstance(told, dict) or told.get("quant_method") != METHOD:
        return None
    groups = told.get("config_groups")
    if not isinstance(groups, dict) or not groups or told.get("transform_config"):
        return None
    sparsity = told.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format") not in (None, "dense"):
        return None
    for group in groups.values():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            return None
        if (group.get("format") or told.get("format")) not in READ_FORMATS:
            return None
    return told


@dataclass(frozen=True)
class CompressedMatrix:
    """One quantised matrix of the files.

    Attributes:
        name: of the matrix, which has the parts NAME_scale and so on.
        shape, dtype: of its values.
        parts: the names of the tensors that it is made of.
        scheme: the library's own description.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[str, ...]
    scheme: Any

    def unpack(self, parts: list[Tensor]) -> Tensor:
        """Its values [out, in], by the library.

        Args:
            parts: the tensors, in the order of their names.

        Raises:
            CheckpointError: they do not make a matrix.
        """
        base = self.name.removesuffix("weight")
        state = {n.removeprefix(base): part for n, part in zip(self.parts, parts, strict=True)}
        try:
            weight: Tensor = compressor_of(self.scheme.format).decompress(state, self.scheme)[
                "weight"
            ]
        except Exception as fault:  # the library's many exceptions, on what the files hold
            raise CheckpointError(
                f"quantised tensor {self.name!r} cannot be read ({reason(fault)})"
            ) from fault
        if tuple(weight.shape) != self.shape:
            raise CheckpointError(
                f"quantised tensor {self.name!r} gives shape {list(weight.shape)}",
                wanted=f"{list(self.shape)}",
            )
        return weight.to(self.dtype).contiguous()

    @property
    def scale_name(self) -> str:
        """The name of the tensor of its scales."""
        return self.name + _SCALE

    @property
    def title(self) -> str:
        """What it is stored as, such as "4 bits, a scale for 64 inputs"."""
        weights = self.scheme.weights
        group = f"{weights.group_size} inputs" if weights.group_size else "a row"
        kind = "fp8" if weights.type == "float" else f"{weights.num_bits} bits"
        return f"{kind}, a scale for {group}" + ("" if weights.symmetric else " and a zero point")


def find_compressed(
    told: Mapping[str, Any], head: Head, shapes: Mapping[str, tuple[int, ...]], where: object
) -> Iterator[CompressedMatrix]:
    """The quantised matrices of a file.

    Args:
        told: see `described`.
        head: shapes and dtypes of the tensors of the file.
        shapes: what stands in the tensors NAME_shape.
        where: the file.

    Raises:
        CheckpointError: a part is missing, or no scheme of the configuration fits one.
        SecateurError: the library is missing.
    """
    schemes = _schemes_of(told, where)
    for scale in sorted(name for name in head if name.endswith(f"weight{_SCALE}")):
        name = scale.removesuffix(_SCALE)
        parts = tuple(part for end in ("", *_ENDS) if (part := name + end) in head)
        if (name in head) == (name + _LEVELS in head) or (name + _LEVELS in head) != (
            name in shapes
        ):
            raise CheckpointError(f"quantised tensor {name!r} is there in part", where=where)
        shape = shapes.get(name) or head[name][0]
        fitting = {
            repr(scheme.weights): scheme for scheme in schemes if _fits(scheme, name, shape, head)
        }
        if len(fitting) != 1:
            raise CheckpointError(
                f"{len(fitting)} schemes of config.json fit quantised tensor {name!r}",
                where=where,
                wanted="one",
            )
        (scheme,) = fitting.values()
        yield CompressedMatrix(name, shape, head[scale][1], parts, scheme)


def dequantised(told: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The same description, by which transformers makes plain weights as it loads.

    Raises:
        CheckpointError: there are several schemes, of which transformers would take the first.
        SecateurError: the library is missing.
    """
    tensors_library()
    schemes = {repr(sorted(group["weights"].items())) for group in told["config_groups"].values()}
    if len(schemes) > 1:
        raise CheckpointError(
            f"the weights are quantised by {len(schemes)} schemes, of which transformers knows one",
            where=where,
        )
    return {**told, "dequantize": True}


def _schemes_of(told: Mapping[str, Any], where: object) -> list[Any]:
    quantization = tensors_library().quantization
    schemes = []
    try:
        for group in told["config_groups"].values():
            scheme = quantization.QuantizationScheme.model_validate(group)
            schemes.append(
                scheme.model_copy(update={"format": group.get("format") or told["format"]})
            )
    except Exception as fault:  # pydantic's, and the library's own
        raise CheckpointError(
            f"{QUANTISED} cannot be read ({reason(fault)})",
            where=where,
            hint="a newer compressed-tensors",
        ) from fault
    return schemes


def _fits(scheme: Any, name: str, shape: tuple[int, ...], head: Head) -> bool:
    """Whether the tensors of a matrix are what a scheme says."""
    weights, scales = scheme.weights, head[name + _SCALE][0]
    if len(shape) != 2 or min(shape) < 1 or weights.symmetric != (name + _ZERO not in head):
        return False
    rows, columns = shape
    if name in head:
        if scheme.format == PACKED or head[name] != (shape, weights.pytorch_dtype()):
            return False
    else:
        packed = ((rows, ceil(columns * weights.num_bits / 32)), torch.int32)
        if scheme.format != PACKED or head[name + _LEVELS] != packed:
            return False
    if weights.strategy == "group":
        return columns % weights.group_size == 0 and scales == (rows, columns // weights.group_size)
    if weights.strategy == "channel":
        return scales == (rows, 1)
    return weights.strategy == "tensor" and scales in ((), (1,))


def compressor_of(form: str) -> Any:
    """The library's class that packs and unpacks matrices of a format."""
    return tensors_library().compressors.BaseCompressor.get_value_from_registry(form)
