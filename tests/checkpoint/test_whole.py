"""What cannot be read block by block keeps every tensor and dtype all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Checkpoint, open_model
from tiny import make_model, make_tokens, save

WEIGHTS = "model.safetensors"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A mixture in bfloat16: routers, norms and one expert in float32, layers for more tokens."""
    folder = save(make_model("qwen3_moe", dtype=torch.bfloat16), tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    for name, value in list(tensors.items()):
        if "norm" in name or ".gate.weight" in name or ".experts.1." in name:
            noise = torch.rand(value.shape, generator=generator)
            tensors[name] = value.float() * (1 + 1e-4 * noise)  # of more bits than bfloat16 has
        if ".layers.1." in name:
            tensors[name.replace(".layers.1.", ".layers.2.")] = tensors[name].clone()
    tensors["model.layers.2.eh_proj.weight"] = torch.ones(32, 64, dtype=torch.bfloat16)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, indent=3))
    return folder


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_nothing_is_lost_and_nothing_rounded(mixed: Path, tmp_path: Path, compute: str) -> None:
    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": make_tokens(4, 16)}, tokens)
    run = secateur.prune(
        mixed, method="wanda", calibration=tokens, sequence_length=16, out=tmp_path / "out",
        dtype=compute,
    )  # fmt: skip
    assert not run.streamed
    before, after = Checkpoint(mixed), Checkpoint(tmp_path / "out")
    assert before.names == after.names
    old, new = before.load(before.names), after.load(after.names)
    pruned = set[str]()
    for name, value in new.items():
        assert value.dtype == old[name].dtype, name
        if not torch.equal(value, old[name]):
            pruned.add(name)
            assert torch.equal(value[value != 0], old[name][value != 0]), name  # those that stay
            assert float((value == 0).float().mean()) == 0.5
    assert len(pruned) == 2 * (4 + 3 * 4)  # attention and experts of two blocks, none of the rest
    assert (tmp_path / "out" / "config.json").read_bytes() == (mixed / "config.json").read_bytes()
    assert secateur.check(tmp_path / "out").complaint is None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded(input_ids=make_tokens(1, 8)).logits.isfinite().all()


def test_a_weight_keeps_the_precision_of_its_files(mixed: Path) -> None:
    source = open_model(mixed, torch.device("cpu"), torch.float32)
    assert not source.streamed
    prefix = source.blocks.prefix(0)
    assert source.storage_dtype(prefix + "self_attn.q_proj.weight") == torch.bfloat16
    assert source.storage_dtype(prefix + "mlp.experts.down_proj") == torch.float32
    changed: dict[str, Tensor] = {}
    tensors = source.stored_surroundings()
    for name, value in Checkpoint(mixed).load(Checkpoint(mixed).names).items():
        if not torch.equal(tensors[name], value):
            changed[name] = value
    assert not changed
