"""Folders of compressed-tensors that somebody else wrote: read by their values, or refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file

import secateur
from secateur.checkpoint import Checkpoint
from secateur.errors import CheckpointError
from tiny import weights_of

INT4 = {"num_bits": 4, "type": "int", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "groups of 16": ("pack-quantized", {**INT4, "strategy": "group", "group_size": 16}),
    "int8 by row": ("int-quantized", {**INT8, "strategy": "channel"}),
    "int8 by matrix": ("int-quantized", {**INT8, "strategy": "tensor"}),
    "fp8 by matrix": ("float-quantized", {**FP8, "strategy": "tensor"}),
    "3 bits": ("pack-quantized", {**INT4, "num_bits": 3, "strategy": "channel"}),
}


def quantised(source: Path, out: Path, form: str, weights: dict[str, Any]) -> dict[str, Any]:
    """Write what the library makes of the matrices of a model; their values by name."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    shutil.copytree(source, out)
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, weight in weights_of(source).items():
        if ".layers." not in name or weight.dim() < 2:
            tensors[name] = values[name] = weight
            continue
        rows, columns = weight.shape
        shapes = {"channel": (rows, 1), "tensor": (1,)}
        shape = shapes.get(weights["strategy"], (rows, columns // 16))
        state = {"weight": weight, "weight_scale": torch.full(shape, 0.05, dtype=weight.dtype)}
        stored = compressor.compress(state, scheme)
        tensors |= {name.removesuffix("weight") + part: stored[part] for part in stored}
        values[name] = compressor.decompress(stored, scheme)["weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    (out / "config.json").write_text(json.dumps(config))
    return values


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_other_formats_are_read(llama_folder: Path, tmp_path: Path, kind: str) -> None:
    form, weights = FOREIGN[kind]
    values = quantised(llama_folder, tmp_path / "q", form, weights)
    checkpoint = Checkpoint(tmp_path / "q")
    assert checkpoint.names == sorted(values)
    for name, value in checkpoint.load(checkpoint.names).items():
        assert torch.equal(value, values[name])
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (value.shape, value.dtype)
    found = secateur.prune(tmp_path / "q", method="magnitude", pattern="blocks-1",
                           out=tmp_path / "fewer")  # fmt: skip
    assert "matrices are quantised" in " ".join(found.notices)
    kept = weights_of(tmp_path / "fewer")
    assert all(tensor.dtype == torch.bfloat16 for tensor in kept.values())
    assert torch.equal(kept["lm_head.weight"], values["lm_head.weight"])


def without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(f"{UP}_packed"), "there in part"),
        (without(f"{UP}_shape"), "there in part"),
        (without(f"{UP}_scale"), r"no place|misses|missing|weights of"),
        (lambda t: t.update({f"{UP}_scale": torch.ones(3, 1)}), "0 schemes of config.json fit"),
        (lambda t: t.update({f"{UP}_shape": torch.tensor([64, 640])}), "0 schemes"),
        (lambda t: t.update({f"{UP}_shape": torch.tensor([64, -1])}), "0 schemes"),
        (lambda t: t.update({f"{UP}_zero_point": torch.zeros(8, 2).int()}), "0 schemes"),
        (lambda t: t.update({UP: torch.zeros(64, 32)}), "there in part"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    llama_folder: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    quantised(llama_folder, tmp_path / "q", *FOREIGN["groups of 16"])
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as fault:
        secateur.check(tmp_path / "q", pattern="2:4")
    assert re.search(message, str(fault.value)), str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "nvfp4-pack-quantized"},
        {"transform_config": {"config_groups": {"R1": {}}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
)
def test_what_is_not_read_is_refused_with_a_way_out(
    llama_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    quantised(llama_folder, tmp_path / "q", *FOREIGN["groups of 16"])
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised \(compressed-tensors\).*plain copy"):
        Checkpoint(tmp_path / "q")
