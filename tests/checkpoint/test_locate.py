"""What is given in place of a model: a line each, with a hint that leads to one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.checkpoint import Checkpoint, commit_of, locate, open_model
from secateur.errors import CheckpointError
from tiny import make_model, save


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in `llama`, and beside it what is taken for one."""
    root = tmp_path_factory.mktemp("place")
    save(make_model("llama", num_hidden_layers=1), root / "llama")
    for folder in ("gguf", "adapter", "pickles", "empty", "maker", "training/checkpoint-500",
                   "models--maker--tiny/snapshots/" + "c" * 40, "models--maker--tiny/blobs",
                   "half"):  # fmt: skip
        (root / folder).mkdir(parents=True)
    for name in ("gguf/tiny.Q4_K.gguf", "maker/consolidated.00.pth", "maker/params.json",
                 "half/model.safetensors", "tiny.zip", "notes.txt"):  # fmt: skip
        (root / name).touch()
    (root / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base"}')
    (root / "adapter" / "adapter_model.safetensors").touch()
    for name in ("pickles", "training/checkpoint-500", "models--maker--tiny/snapshots/" + "c" * 40):
        (root / name / "config.json").write_text("{}")
    (root / "pickles" / "pytorch_model.bin").touch()
    return root


GIVEN: dict[str, tuple[str, list[str]]] = {
    "a GGUF file": (
        "gguf/tiny.Q4_K.gguf",
        ["not a GGUF file: it begins", "tiny.Q4_K.gguf"],
    ),
    "a folder of GGUF files": ("gguf", ["GGUF files (tiny.Q4_K.gguf)", "try the file itself: "]),
    "a safetensors file": ("llama/model.safetensors", ["the folder that it is in", "llama"]),
    "a configuration": ("llama/config.json", ["the folder that it is in", "llama"]),
    "a lone safetensors file": ("half/model.safetensors", ["a folder that has it and its config"]),
    "weights alone": ("half", ["no config.json", "the config.json that belongs to the weights"]),
    "an archive": ("tiny.zip", ["it is an archive", "try unpacking it"]),
    "a file": ("notes.txt", ["no model folder", "it is a file", "wanted a folder"]),
    "an adapter": ("adapter", ["an adapter of a/base", "merge_and_unload", "adapter-merged"]),
    "a root of snapshots": ("models--maker--tiny", ["no config.json", "/snapshots/ccccc"]),
    "a folder above": ("training", ["no config.json", "a model that is in it", "checkpoint-500"]),
    "an empty folder": ("empty", ["no config.json (the folder is empty)"]),
    "pickles": ("pickles", ["only pickled weights", "(pytorch_model.bin)", "python -c"]),
    "a maker's format": ("maker", ["no config.json", "in the format of transformers"]),
    "a misspelt folder": ("lama", ["no model folder", "try ", "/llama"]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_hint_leads_to_a_model(name: str, place: Path) -> None:
    given, said = GIVEN[name]
    with pytest.raises(CheckpointError) as refused:
        Checkpoint(locate(place / given))
    line = str(refused.value)
    assert "\n" not in line
    for part in said:
        assert part in line


NO_PATH = {
    "~nosuchuser/x": "can be no path",
    "o" * 300 + "/x": "File name too long",
    "a\0b": "can be no path",
    "owner/\udcff": "can be no path",
    "https://huggingface.co/owner/name/tree/main": "try owner/name",
    "owner/name/sub": "no model folder",
}


@pytest.mark.parametrize("given", NO_PATH)
def test_what_is_no_path_is_one_line(given: str) -> None:
    with pytest.raises(CheckpointError, match=NO_PATH[given]) as refused:
        locate(given)
    assert len(str(refused.value)) < 400


def test_a_misspelt_relative_folder_is_no_hub_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parent)
    with pytest.raises(CheckpointError, match=rf"try {place.name}/llama"):
        locate(f"{place.name}/lama")


def test_the_commit_of_a_snapshot(place: Path) -> None:
    assert commit_of(place / "models--maker--tiny" / "snapshots" / ("c" * 40)) == "c" * 40
    assert commit_of(place / "llama") is None


QUANTISED: dict[str, tuple[dict[str, object], str]] = {
    "fp8": ({"quant_method": "fp8"}, r"quantised \(fp8\).*FineGrainedFP8Config\(dequantize=True"),
    "mxfp4": ({"quant_method": "mxfp4"}, r"\(mxfp4\).*Mxfp4Config\(dequantize=True"),
    "compressed": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}},
        r"CompressedTensorsConfig\(dequantize=True",
    ),
    "a sparse form": (
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
        r"quantised \(compressed-tensors\)",
    ),
    "gptq": ({"quant_method": "gptq"}, "try the checkpoint that they were quantised from"),
    "unnamed": ({"bits": 4}, "the weights are quantised in"),
}


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("part", ["quantization_config", "text_config"])
def test_quantised_weights_are_refused_with_a_way_to_plain_ones(
    name: str, part: str, tmp_path: Path
) -> None:
    described, said = QUANTISED[name]
    config = described if part != "text_config" else {"quantization_config": described}
    (tmp_path / "config.json").write_text(json.dumps({part: config}))
    with pytest.raises(CheckpointError, match=said):
        Checkpoint(tmp_path)


RENAMED: dict[str, tuple[Callable[[str], str], str]] = {
    "torch.compile": (lambda name: f"_orig_mod.{name}", "torch.compile"),
    "DataParallel": (lambda name: f"module.{name}", "DistributedDataParallel"),
    "another family": (
        lambda name: f"net.{name}",
        r"hold net.lm_head.weight, .*try names without 'net.' in front",
    ),
}


@pytest.mark.parametrize("name", RENAMED)
def test_missing_weights_are_told_with_those_that_are_there(name: str, tmp_path: Path) -> None:
    folder = save(make_model("llama", num_hidden_layers=1), tmp_path / "model")
    rename, said = RENAMED[name]
    tensors = {rename(old): value for old, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        open_model(folder, torch.device("cpu"))


@pytest.mark.parametrize("name", [".", "config.json", "model.safetensors"])
def test_a_missing_right_is_told_as_one(name: str, tmp_path: Path) -> None:
    folder = save(make_model("llama", num_hidden_layers=1), tmp_path / "model")
    (folder / name).chmod(0)
    try:
        if os.access(folder / name, os.R_OK):
            pytest.skip("root may read everything")
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
            Checkpoint(locate(folder))
    finally:
        (folder / name).chmod(0o755)
