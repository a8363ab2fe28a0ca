"""A model written to GGUF is the same model: for transformers' own reader, and read as MODEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import secateur
from secateur.checkpoint import Checkpoint, locate
from secateur.checkpoint.from_gguf import CACHE
from tiny import SENTENCES, make_model, make_sparse_model, make_tokens, save

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
GEMMA = {**SIZES, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
GEMMA3 = {
    "num_hidden_layers": 7,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    },
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", {**SIZES, "tie_word_embeddings": True}),
    "llama 3": ("llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama, linear": (
        "llama",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral": ("mistral", {**SIZES, "sliding_window": None}),
    "qwen2": ("qwen2", {**SIZES, "head_dim": None}),
    "qwen3": ("qwen3", SIZES),
    "qwen3, heads of 128": ("qwen3", {**SIZES, "head_dim": 128}),  # all that transformers reads
    "gemma2": ("gemma2", GEMMA),
    "gemma2, blocks fewer": ("gemma2", {**GEMMA, "layer_types": ["full_attention"] * 2}),
    "gemma3": ("gemma3", {**GEMMA, **GEMMA3}),
    "gemma3, blocks fewer": ("gemma3", GEMMA),  # one that slides, one that does not
}
"""Name -> family of the tiny models and what differs."""
TYPES = ("F16", "BF16", "Q8_0", "Q4_0")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def built(name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    family, changes = KINDS[name]
    changes = {
        key: value for key, value in changes.items() if value is not None or key != "head_dim"
    }
    return make_model(family, dtype=dtype, **changes)


def expected(name: str, weight: Tensor, type_: str) -> Tensor:
    """A weight as the gguf library gives it back; it rounds along rows, whatever their order."""
    if weight.dim() == 1:
        return weight.float()
    if type_ == "Q4_0" and ("embed_tokens" in name or "lm_head" in name):
        type_ = "Q8_0"
    kind = gguf.GGMLQuantizationType[type_]
    stored = gguf.quants.quantize(weight.float().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(stored, kind)).view(weight.shape)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3, heads of 128", "gemma3"])
def test_transformers_reads_the_same_tensors(name: str, type_: str, tmp_path: Path) -> None:
    model = built(name)
    folder = save(model, tmp_path / "model")
    done = secateur.pack_gguf(folder, tmp_path / "m.gguf", type=type_)
    assert done.after == sum(
        tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    )
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    there = read.state_dict()
    for key, weight in model.state_dict().items():
        assert torch.equal(there[key], expected(key, weight, type_)), key


@pytest.mark.parametrize("name", KINDS)
def test_a_file_read_as_a_model_is_the_model(name: str, tmp_path: Path) -> None:
    model = built(name)
    folder = save(model, tmp_path / "model")
    secateur.pack_gguf(folder, tmp_path / "m.gguf", type="BF16")
    read = secateur.load(tmp_path / "m.gguf", dtype=torch.bfloat16)
    ours = dict(model.state_dict())
    assert {key: str(value.dtype) for key, value in read.state_dict().items()} == {
        key: str(value.dtype) for key, value in ours.items()
    }
    for key, weight in ours.items():
        assert torch.equal(read.state_dict()[key], weight), key
    tokens = make_tokens(2, 40)
    with torch.no_grad():
        a, b = model.float()(tokens).logits, read.float()(tokens).logits
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_file_written_of_a_file_is_the_same_file(tmp_path: Path) -> None:
    folder = save(built("llama"), tmp_path / "m")
    secateur.pack_gguf(folder, tmp_path / "m.gguf", type="BF16")
    made = locate(tmp_path / "m.gguf")
    assert Checkpoint(made).notices == (
        f"{tmp_path / 'm.gguf'} is read from {made}, where its weights lie dequantised",
    )
    before = (made / "model.safetensors").stat()
    assert locate(tmp_path / "m.gguf") == made
    assert (made / "model.safetensors").stat() == before
    made.rename(made.parent / "m")  # the file says the folder's name
    secateur.pack_gguf(made.parent / "m", tmp_path / "again.gguf", type="BF16")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    folder = save(built("llama"), tmp_path / "model")
    secateur.pack_gguf(folder, tmp_path / "m.gguf")
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    read = AutoTokenizer.from_pretrained(locate(tmp_path / "m.gguf"))
    for sentence in SENTENCES:
        text = f"<s>{sentence} {sentence}"
        wanted = ours(text)["input_ids"]
        assert theirs(text)["input_ids"] == wanted
        assert read(text)["input_ids"] == wanted
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize("type_", TYPES)
def test_a_pattern_is_still_there(type_: str, tmp_path: Path) -> None:
    model = make_sparse_model("llama", dtype=torch.bfloat16, **SIZES)
    folder = save(model, tmp_path / "model")
    secateur.pack_gguf(folder, tmp_path / "m.gguf", type=type_)
    made = locate(tmp_path / "m.gguf")
    for key, weight in secateur.load(made).state_dict().items():
        if "proj" in key:
            zeros = model.state_dict()[key] == 0
            assert bool((weight[zeros] == 0).all()), key
    assert secateur.check(made, pattern="1:2").complaint is None


def test_tiny_and_empty_groups_stay_zeros(tmp_path: Path) -> None:
    model = built("llama", torch.float32)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    with torch.no_grad():
        weight[0] = 0
        weight[1] = 1e-41  # whose reciprocal is infinite
        weight[1, ::2] = 0
    folder = save(model, tmp_path / "model")
    for type_ in ("Q8_0", "Q4_0"):
        secateur.pack_gguf(folder, tmp_path / "m.gguf", type=type_, overwrite=True)
        read = secateur.load(tmp_path / "m.gguf").get_parameter("model.layers.0.mlp.up_proj.weight")
        assert not read[:2].any()
        assert read[2:].any()


def test_what_32_does_not_divide_is_f16(tmp_path: Path) -> None:
    model = make_model("llama", **{**SIZES, "intermediate_size": 72})
    folder = save(model, tmp_path / "model")
    done = secateur.pack_gguf(folder, tmp_path / "m.gguf", type="Q8_0")
    assert done.forms["F16"] == 3  # down_proj of three blocks
    read = secateur.load(tmp_path / "m.gguf")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(read.get_parameter(name), model.get_parameter(name).half().float())


def test_a_packed_folder_is_unpacked_on_the_way(tmp_path: Path) -> None:
    model = make_sparse_model("llama", dtype=torch.bfloat16, **SIZES)
    folder = save(model, tmp_path / "a" / "m")
    secateur.pack(folder, tmp_path / "b" / "m")
    for place in ("a", "b"):
        secateur.pack_gguf(tmp_path / place / "m", tmp_path / f"{place}.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_run_on_a_file_says_so(tmp_path: Path) -> None:
    folder = save(built("llama"), tmp_path / "model")
    secateur.pack_gguf(folder, tmp_path / "m.gguf", type="Q8_0")
    run = secateur.prune(tmp_path / "m.gguf", method="magnitude", out=tmp_path / "pruned")
    assert run.recipe["model"] == str(tmp_path / "m.gguf")
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert "gguf-source" not in names
    assert "tokenizer.json" in names
    assert secateur.check(tmp_path / "pruned", pattern="2:4").complaint is None
    done = secateur.pack_gguf(tmp_path / "pruned", tmp_path / "pruned.gguf", type="Q8_0")
    first, second = (gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in ("m", "pruned"))
    for a, b in zip(first, second, strict=True):  # what is kept is rounded to where it was
        dense, sparse = (gguf.quants.dequantize(t.data, t.tensor_type) for t in (a, b))
        kept = sparse != 0
        np.testing.assert_allclose(dense[kept], sparse[kept], rtol=2e-3)
    assert done.forms["Q8_0"] == 23
