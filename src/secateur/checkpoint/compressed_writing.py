"""Writes quantised matrices as `compressed.py` reads them, and the config.json that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from secateur.checkpoint.compressed import FLOAT, PACKED, compressor_of, tensors_library
from secateur.checkpoint.packed_folder import QUANTISED, plain_config
from secateur.quantization import RoundedMatrix, Scheme

Rounded = Mapping[str, RoundedMatrix]
"""What is stored quantised, by the name of its parameter in the model."""
NONE: Rounded = MappingProxyType({})


def compressed_config(text: str, scheme: Scheme, ignored: Collection[str]) -> str:
    """The config.json of a folder of quantised weights, as llm-compressor writes it.

    Args:
        text: that of the model.
        scheme: of every matrix that is quantised.
        ignored: names of the linear layers that are not.
    """
    tensors = tensors_library()
    told = tensors.quantization.QuantizationConfig(
        config_groups={"group_0": _described_by(scheme)},
        format=FLOAT if scheme.floating else PACKED,
        quantization_status="compressed",
        ignore=sorted(ignored),
    )
    config = json.loads(plain_config(text))
    config[QUANTISED] = {
        "version": tensors.__version__,
        "sparsity_config": {},
        "transform_config": {},
        **told.model_dump(mode="json", exclude={"moe_sparsity_config"}),
    }
    return json.dumps(config, indent=2) + "\n"


def with_quantised(
    tensors: Mapping[str, Tensor],
    rounded: Rounded,
    part: Callable[[str, Tensor], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """The tensors of a block as a file holds them, what is quantised in its parts.

    Args:
        tensors: of the block by their names in the files.
        rounded: what is quantised of it.
        part: gives the tensors that a parameter is made of, by their names in the files: levels,
            scales and zero points go the same way, experts each in tensors of their own.
    """
    stored = dict(tensors)
    for parameter, matrix in rounded.items():
        levels, scales = part(parameter, matrix.levels), part(parameter, matrix.scale)
        zeros = {} if matrix.zero is None else part(parameter, matrix.zero)
        for name, of_name in levels.items():
            del stored[name]
            one = RoundedMatrix(matrix.scheme, of_name, scales[name], zeros.get(name))
            stored |= compressed_parts(name, one)
    return stored


def compressed_parts(name: str, matrix: RoundedMatrix) -> dict[str, Tensor]:
    """The tensors of a quantised matrix by their names, on the CPU.

    Args:
        name: of the matrix in the files; ends in ".weight".
        matrix: its levels, scales and zero points.
    """
    scale = matrix.scale.cpu()
    # In float32 a value divided by its scale is its level to the bit.
    exact = RoundedMatrix(matrix.scheme, matrix.levels, matrix.scale.float(), matrix.zero)
    state = {"weight": exact.weight.cpu(), "weight_scale": exact.scale.cpu()}
    if matrix.zero is not None:
        state["weight_zero_point"] = matrix.zero.cpu()
    scheme = _described_by(matrix.scheme)
    compressed = compressor_of(scheme.format).compress(state, scheme)
    compressed["weight_scale"] = scale
    base = name.removesuffix("weight")
    return {base + part: value.contiguous() for part, value in compressed.items()}


def _described_by(scheme: Scheme) -> Any:
    """The library's description of a scheme, of all linear layers."""
    quantization = tensors_library().quantization
    weights = quantization.QuantizationArgs(
        num_bits=scheme.bits,
        type="float" if scheme.floating else "int",
        symmetric=scheme.symmetric,
        strategy="channel" if scheme.group is None else "group",
        group_size=scheme.group,
    )
    activations = quantization.QuantizationArgs(
        num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True
    )
    return quantization.QuantizationScheme(
        targets=["Linear"],
        weights=weights,
        input_activations=activations if scheme.floating else None,
        format=FLOAT if scheme.floating else PACKED,
    )
