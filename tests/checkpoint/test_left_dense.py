"""What is left dense: routers are told by what they do, and everything is listed with why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3NextConfig, RecurrentGemmaConfig

import secateur
from secateur.checkpoint import ResidentModel, find_left_dense, find_matrices
from secateur.checkpoint.matrices import find_routers
from secateur.errors import ModelError
from secateur.record.check import check_folder
from secateur.sparsity import read_selection
from tiny import VOCABULARY, make_model

CPU = torch.device("cpu")


class Experts(nn.Module):
    """Fused experts, as transformers lays them out."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.num_experts, self.is_transposed, self.has_gate, self.has_bias = number, False, 1, 0
        self.gate_up_proj = nn.Parameter(torch.empty(number, 16, width))
        self.down_proj = nn.Parameter(torch.empty(number, width, 8))


class TinyRouter(nn.Module):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Gate(nn.Module):
    def __init__(self, wg: nn.Module) -> None:
        super().__init__()
        self.wg = wg


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, inner), nn.Linear(inner, width)


class Attention(nn.Module):
    def __init__(self, width: int, keys: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, 2 * width), nn.Linear(width, keys)
        self.o_proj = nn.Linear(2 * width, width)


@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize(
    ("name", "make", "routes"),
    [
        ("gate", lambda width: nn.Linear(width, 32), True),
        ("shared_expert_gate", lambda width: nn.Linear(width, 1), True),
        ("gate", lambda width: Gate(wg=nn.Linear(width, 32)), True),
        ("router", lambda width: TinyRouter(a=nn.Linear(width, 8), b=nn.Linear(8, 33)), True),
        ("up", lambda width: nn.Linear(width, 32), False),
        ("shared_expert", lambda width: Mlp(width, 32), False),
        ("shared_expert", lambda width: Mlp(width, 24), False),
        ("self_attn", lambda width: Attention(width, 32), False),
        ("self_attn", lambda width: Attention(width, 1), False),
    ],
)
def test_routers_are_told_by_what_they_do(
    name: str, make: Callable[[int], nn.Module], routes: bool, width: int
) -> None:
    """32 experts, of the width or not: what leads back to the width is no router.

    The last of them is half of an MLP whose layers are in no module of their own.
    """
    block = nn.Module()
    block.experts = Experts(32, width)
    block.add_module(name, make(width))
    if name == "up":
        block.down = nn.Linear(32, width)
    linear = {n for n, module in block.named_modules() if isinstance(module, nn.Linear)}
    routers = linear if routes else set()
    assert find_routers(block) == routers
    matrices = {matrix.parameter.removesuffix(".weight") for matrix in find_matrices(block)}
    assert matrices == linear - routers | {"experts.gate_up_proj", "experts.down_proj"}


def test_a_shared_expert_as_wide_as_there_are_experts_is_pruned() -> None:
    config = Qwen3NextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, moe_intermediate_size=8,
        num_experts=32, num_experts_per_tok=2, shared_expert_intermediate_size=32,
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    source = ResidentModel(AutoModelForCausalLM.from_config(config), CPU, torch.float32)
    kinds = {matrix.kind for matrix in find_matrices(source.blocks.modules[0])}
    assert {f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")} <= kinds
    left = {(one.reason, one.name): one for one in find_left_dense(source, None)}
    assert left["router", "mlp.gate"].blocks == (0, 1, 2, 3)
    assert left["router", "mlp.shared_expert_gate"].weights == 4 * 32
    assert left["convolution", "linear_attn.conv1d"].blocks == (0, 1, 2)
    assert left["embedding", "model.embed_tokens"].weights == VOCABULARY * 32
    assert ("head", "lm_head") in left
    assert len(left) == 5


def test_a_tenth_that_cannot_be_pruned_is_listed_and_half_is_refused() -> None:
    config = RecurrentGemmaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, lru_width=32, conv1d_width=4,
        block_types=("recurrent", "recurrent", "attention"),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    source = ResidentModel(model, CPU, torch.float32)
    listed = find_left_dense(source, None)
    assert {one.reason for one in listed} >= {"convolution", "in no linear layer"}
    pieces = [nn.Linear(30, 10, bias=False), nn.Embedding(9996, 1), nn.Embedding(4, 1)]
    with pytest.raises(ModelError, match=r"only 2\.9% .* \(not: 1\.weight.*at least 75%"):
        find_matrices(nn.Sequential(*pieces))


def test_everything_is_in_the_notices_the_record_and_the_proof(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = save(make_model("mixtral", num_hidden_layers=2)), tmp_path / "out"
    shard = folder / "model.safetensors"
    extra = {"model.layers.2.mtp.weight": torch.ones(4, 4), "model.layers.2.norm": torch.ones(4)}
    save_file({**load_file(shard), **extra}, shard, metadata={"format": "pt"})
    run = secateur.prune(
        folder, method="magnitude", pattern="2:4", out=out, exclude="down_proj", dense_first=1
    )
    (notice,) = run.notices
    assert "router: mlp.gate in blocks 0-1" in notice
    assert "no part of the model that transformers builds: model.layers in blocks 2" in notice
    stage = json.loads((out / "run.json").read_text())["stages"][0]
    listed = {(one["reason"], one["name"]): one for one in stage["left_dense"]}
    assert listed["excluded", "mlp.experts.down_proj"]["blocks"] == [1]
    assert listed["dense_first", "self_attn.q_proj"]["blocks"] == [0]
    proof = check_folder(str(out))
    assert proof.left_dense == run.stages[0].left_dense
    everything = sum(tensor.numel() for tensor in load_all(out).values() if tensor.dim() >= 2)
    assert proof.covered + sum(one.weights for one in proof.left_dense) == everything


def load_all(folder: Path) -> dict[str, Any]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_selection_says_why() -> None:
    selection = read_selection(
        {
            "pattern": "2:4",
            "include": ["mlp"],
            "exclude": ["down"],
            "blocks": "1-",
            "dense_first": 1,
        }
    )
    names = ["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"]
    reasons = [selection.reason_dense(1, name) for name in names]
    assert reasons == [None, "excluded", "not included"]
    assert selection.reason_dense(0, "mlp.up_proj") == "dense_first"
