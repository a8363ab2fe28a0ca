"""Every family from disk to disk, by the methods that `families_table.cases_of` gives for it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, JetMoeConfig, PreTrainedModel

import secateur
from families import BY_EVERY_METHOD, KINDS, MULTIMODAL_FAMILIES
from families_table import (
    ALWAYS,
    EVERY_CASE,
    HOW_TO_WRITE,
    TABLE,
    TESTED,
    cases_of,
    table,
    without_passed_line,
)
from secateur.blocks.stream import Stream
from secateur.checkpoint import Checkpoint, ResidentModel, find_all_matrices, find_blocks
from secateur.errors import ModelError
from secateur.record.check import check_folder
from secateur.sparsity import audit, parse_pattern
from tiny import auto_class, fingerprint, make_model, make_tokens, save

QUICK = {"regional": {"rounds": 2, "samples": 2}}
FEW: dict[str, Any] = {"samples": 8, "sequence_length": 16}


def options(method: str) -> dict[str, Any]:
    return {**FEW, **QUICK} if method in ("wanda++", "wanda++-ro") else FEW


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Calibration tokens, int64 [8, 16]."""
    return make_tokens(8, 16)


@pytest.fixture(scope="module")
def tokens_file(tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"input_ids": tokens}, path)
    return path


class Made(dict[str, Any]):
    """Family -> what is made of it when it is first asked for."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, family: str) -> Any:
        self[family] = self.make(family)
        return self[family]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Family -> a folder with its tiny model in bfloat16."""
    root = tmp_path_factory.mktemp("families")
    return Made(lambda family: save(make_model(family, dtype=torch.bfloat16), root / family))


@pytest.fixture(scope="module")
def models(folders: Mapping[str, Path]) -> Made:
    """Family -> the same model in memory. Not to be changed."""
    return Made(lambda family: auto_class(family).from_pretrained(folders[family]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What the test below prunes, and how, by what was asked for on the command line."""
    if {"family", "method", "pattern"} <= set(metafunc.fixturenames):
        thorough = metafunc.config.getoption("every_method")
        cases = [(family, *case) for family in TESTED for case in cases_of(family, thorough)]
        metafunc.parametrize(("family", "method", "pattern"), cases)


def test_from_disk_to_disk(
    family: str,
    method: str,
    pattern: Any,
    models: Mapping[str, PreTrainedModel],
    folders: Mapping[str, Path],
    tokens: Tensor,
    tokens_file: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    before = fingerprint(folders[family])
    run = secateur.prune(
        folders[family], method=method, pattern=pattern, calibration=str(tokens_file), out=out,
        **options(method),
    )  # fmt: skip
    assert fingerprint(folders[family]) == before
    assert run.streamed
    assert run.sparsity == pytest.approx(0.5)

    # the folder gives the logits that the same pruning gives in memory
    live = copy.deepcopy(models[family])
    secateur.prune(live, method=method, pattern=pattern, calibration=tokens, **options(method))
    loaded = auto_class(family).from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, live.eval()(input_ids=tokens).logits)

    zeros = 0
    for matrices in find_all_matrices(find_blocks(loaded)):
        for matrix in matrices:
            weight = matrix.read()
            counted = audit(weight, parse_pattern(pattern))
            assert counted.holds
            assert not torch.signbit(weight[weight == 0]).any()  # no -0 where a weight was pruned
            zeros += counted.zeros
    assert zeros == run.zeros


IN_A_BLOCK = re.compile(r"^(?!.*(vision|visual)).*\.(layers|h|blocks)\.\d+\.")
STAYS = re.compile(
    r"(mlp|block_sparse_moe|feed_forward|mixer)\.(gate|router|router\.layer|router\.gate)\.weight"
    r"|router\.proj\.weight|shared_expert_gate\.weight"  # who sees a token
    r"|conv1d\.weight|conv\.conv\.weight"  # convolutions, [channels, 1, positions]
    r"|(A_log|slope_rate|_decay|e_score_correction_bias)"  # what decays how fast, whom to prefer
    r"|_proj_bias"  # [experts, out]
)
"""What of a block has two dimensions or more and is no matrix that is pruned."""


@pytest.mark.parametrize("family", TESTED)
def test_only_matrices_of_blocks_change_and_all_but_routers(
    family: str, folders: Mapping[str, Path], tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = secateur.prune(
        folders[family], method="wanda", calibration=str(tokens_file), out=out, **FEW
    )
    proof = check_folder(str(out), "2:4")
    assert not proof.failing
    assert (proof.zeros, proof.weights) == (run.zeros, run.weights)
    source, result = Checkpoint(folders[family]), Checkpoint(out)
    assert source.names == result.names  # those of the hub
    changed = set()
    for name in source.names:
        assert source.dtype(name) == result.dtype(name)
        old, new = source.load([name])[name], result.load([name])[name]
        if not torch.equal(old, new):
            changed.add(name)
    in_blocks = {name for name in source.names if IN_A_BLOCK.search(name)}
    matrices = {name for name in in_blocks if len(source.shape(name)) >= 2}
    assert changed == {name for name in matrices if not STAYS.search(name)}


def test_the_input_dimension_of_conv1d_is_its_first(
    folders: Mapping[str, Path], tokens_file: Path, tmp_path: Path
) -> None:
    """GPT-2 stores [in, out]: groups of four run down the columns of what is stored."""
    out = tmp_path / "out"
    secateur.prune(
        folders["gpt2"], method="wanda", calibration=str(tokens_file), out=out, **FEW
    )  # fmt: skip
    checkpoint = Checkpoint(out)
    name = "transformer.h.0.mlp.c_fc.weight"
    stored = checkpoint.load([name])[name]
    assert stored.shape == (32, 64)
    assert ((stored != 0).view(8, 4, 64).sum(1) == 2).all()
    assert not ((stored != 0).view(32, 16, 4).sum(2) == 2).all()


def test_blocks_are_calibrated_on_what_pruned_blocks_below_give(
    folders: Mapping[str, Path], tokens: Tensor, tokens_file: Path, tmp_path: Path
) -> None:
    """Block 2's mask follows from inputs that went through pruned blocks 0 and 1."""
    out = tmp_path / "out"
    secateur.prune(
        folders["llama"], method="wanda", calibration=str(tokens_file), out=out, **FEW
    )  # fmt: skip
    pruned = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    dense = make_model("llama", dtype=torch.bfloat16).float()
    source = ResidentModel(pruned, torch.device("cpu"), torch.float32)
    stream = Stream(source, tokens, 8)
    for index in (0, 1):
        stream.advance(source.blocks.modules[index], index)
    block = dense.model.layers[2]
    normed = block.input_layernorm(stream.batches[0].hidden)
    weight = block.self_attn.q_proj.weight.detach()
    metric = weight.abs() * normed.flatten(0, 1).norm(dim=0)
    least = metric.view(-1, 4).argsort(1)[:, :2]
    expected = torch.ones_like(metric.view(-1, 4)).scatter_(1, least, 0).view_as(weight)
    found = pruned.model.layers[2].self_attn.q_proj.weight != 0
    assert torch.equal(found, expected.bool())


def test_the_record_and_the_index_tell_the_truth(
    folders: Mapping[str, Path], tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = secateur.prune(
        folders["llama"], method="wanda++", calibration=str(tokens_file), out=out,
        **options("wanda++"),
    )  # fmt: skip
    written = json.loads((out / "run.json").read_text())
    assert written == json.loads(run.model_dump_json())
    assert written["calibration"]["sequences"] == 8
    assert written["stages"][0]["settings"]["regional"]["rounds"] == 2
    parameters = {"alpha": 100.0, "by_block": True, "competition": "row"}
    assert written["stages"][0]["settings"]["parameters"] == parameters
    chosen = [block["parameters"]["alpha"] for block in written["stages"][0]["blocks"]]
    assert set(chosen) <= {0.0, 25.0, 100.0, 400.0}
    assert len(written["stages"][0]["blocks"]) == 3
    assert all(0 < block["output_error"] < 1 for block in written["stages"][0]["blocks"])
    assert all(
        matrix["holds"] for block in written["stages"][0]["blocks"] for matrix in block["matrices"]
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(out / file, "pt") as shard:
            assert name in shard.keys()  # noqa: SIM118


@pytest.mark.parametrize("depth", [2, 3])
def test_the_encoder_of_a_multimodal_model_is_left_alone(
    depth: int, tokens_file: Path, tmp_path: Path
) -> None:
    """Even one that has as many layers as the decoder."""
    vision = {**MULTIMODAL_FAMILIES["gemma3-images"]["vision_config"], "num_hidden_layers": depth}
    folder, out = tmp_path / "dense", tmp_path / "out"
    dense = make_model("gemma3-images", dtype=torch.bfloat16, vision_config=vision)
    run = secateur.prune(
        save(dense, folder), method="wanda", calibration=str(tokens_file), out=out, **FEW
    )
    assert (run.streamed, run.sparsity) == (True, 0.5)
    old, new = dense.state_dict(), AutoModelForCausalLM.from_pretrained(out).state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in changed)


def test_blocks_beside_an_encoder_of_the_same_depth_are_the_decoders() -> None:
    model = make_model("llama")
    model.vision = torch.nn.Module()
    model.vision.layers = copy.deepcopy(model.model.layers)
    assert find_blocks(model).path == "model.layers"


def test_experts_that_cannot_be_seen_are_refused_not_skipped(
    tokens_file: Path, tmp_path: Path
) -> None:
    """Pruning only a mixture's attention would call 6 % sparsity 50 %."""
    config = JetMoeConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_key_value_heads=2, kv_channels=8, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = save(AutoModelForCausalLM.from_config(config), tmp_path / "jetmoe")
    with pytest.raises(ModelError, match=r"only \d+\.\d% .*mlp\.input_linear\.weight"):
        secateur.prune(
            folder, method="wanda", calibration=str(tokens_file), out=tmp_path / "out", **FEW
        )
    assert not (tmp_path / "out").exists()


def test_the_table_in_the_docs_is_what_is_tested(folders: Mapping[str, Path]) -> None:
    page = without_passed_line(TABLE.read_text(encoding="utf-8"))
    assert page == table(folders), f"write it: {HOW_TO_WRITE}"
    readme = (TABLE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f" {len(TESTED)} decoder families" in readme


def test_every_kind_of_block_is_pruned_by_every_method() -> None:
    assert set(BY_EVERY_METHOD) | set(KINDS) <= set(TESTED)
    for family in TESTED:
        assert cases_of(family, thorough=True) == EVERY_CASE
        assert set(ALWAYS) <= set(cases_of(family, thorough=False)) <= set(EVERY_CASE)
        assert (cases_of(family, thorough=False) == EVERY_CASE) == (family in BY_EVERY_METHOD)
