"""A config.json asks for no more than its weights can fill, and chooses no code."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Gemma3Config, Gemma3ForConditionalGeneration

from secateur.checkpoint import BlockModel, ResidentModel, load_whole, open_model
from secateur.errors import SecateurError
from tiny import make_model, save

CPU = torch.device("cpu")
HUGE = 10**9
LARGER, LAYERS = "far larger model", "the files hold"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save(make_model(name), root / name) for name in ("llama", "gemma2", "mixtral")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = {**sizes, "vocab_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    eyes = {**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = Gemma3Config(
        text_config={**text, "head_dim": 8}, vision_config=eyes, mm_tokens_per_image=4
    )
    made["gemma3"] = save(Gemma3ForConditionalGeneration(config), root / "gemma3")
    small = BertConfig(**{**text, "num_attention_heads": 2})
    return {**made, "bert": save(BertModel(small), root / "bert")}


@pytest.mark.parametrize(
    ("model", "key", "value", "said"),
    [
        ("llama", "num_labels", HUGE, "1000000000 of num_labels"),
        ("llama", "num_attention_heads", HUGE, "of num_attention_heads"),
        ("llama", "text_config", "llama", "the part of the decoder is a str"),
        ("llama", "decoder", {"model_type": "llama"}, "the part of the decoder is a dict"),
        ("mixtral", "num_local_experts", HUGE, "of num_local_experts"),
        ("gemma2", "num_hidden_layers", HUGE, LAYERS),
        ("llama", "num_hidden_layers", 10**6, LAYERS),
        ("llama", "num_hidden_layers", 120, LARGER),
        ("gemma3", "vision_config.num_hidden_layers", HUGE, LAYERS),
        ("gemma3", "text_config.num_hidden_layers", HUGE, LAYERS),
        ("gemma3", "vision_config.image_size", HUGE, LARGER),
        ("llama", "hidden_size", 1_200_000_000, LARGER),
        ("llama", "vocab_size", 10**12, LARGER),
        ("llama", "vocab_size", 10**30, "no model can be built"),
        ("llama", "intermediate_size", 0, "it has no weights"),
        ("llama", "intermediate_size", -5, "negative dimension"),
        ("llama", "intermediate_size", 63.5, "expected int"),
        ("llama", "architectures", 5, "architectures are 5"),
        ("bert", "architectures", [5], "a list of names"),
        ("bert", "architectures", "BertModel", "a list of names"),
        ("llama", "unknown", json.loads("[" * 50 + "]" * 50), "levels of JSON"),
        ("llama", "unknown", "x" * 9_000_000, "bytes of JSON"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_sizes_are_looked_at_before_anything_is_built(
    folders: dict[str, Path], tmp_path: Path, model: str, key: str, value: Any, said: str
) -> None:
    folder = changed(folders[model], tmp_path / "model", key, value)
    for read in (lambda: open_model(folder, CPU, torch.float32), lambda: load_whole(folder)):
        with pytest.raises(SecateurError, match=said) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("llama", "_attn_implementation", "kernels-community/flash-attn3"),
        ("llama", "attn_implementation", "owner/name:function"),
        ("llama", "attn_implementation", "flash_attention_2"),
        ("gemma3", "text_config._attn_implementation", "owner/name"),
        ("mixtral", "_experts_implementation", "sonicmoe"),
    ],
)
def test_a_configuration_chooses_no_code(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    key: str,
    value: str,
) -> None:
    from transformers.integrations import hub_kernels

    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", fetch)
    folder = changed(folders[model], tmp_path / "model", key, value)
    for loaded in (open_model(folder, CPU, torch.float32).model, load_whole(folder)):
        for config in (loaded.config, loaded.config.get_text_config()):
            assert config._attn_implementation in ("sdpa", "eager")
            assert config._experts_implementation in ("grouped_mm", "eager", None)


def test_threads_leave_torch_as_it_was(folders: dict[str, Path]) -> None:
    held, before = make_model("llama"), (torch.linspace, nn.init.normal_, nn.init.ones_)

    def tensors(source: BlockModel) -> list[Tensor]:
        with source.open_block(1) as block:
            return [value.clone() for value in block.state_dict().values()]

    works: list[Callable[[], list[Tensor]]] = [
        lambda: tensors(open_model(folders["llama"], CPU, torch.bfloat16)),
        lambda: tensors(ResidentModel(deepcopy(held), CPU, torch.bfloat16)),
        lambda: list(load_whole(folders["llama"], torch.float16).state_dict().values()),
    ]
    wanted = [work() for work in works]
    wrong: list[object] = []

    def repeat(number: int) -> None:
        for _ in range(4):
            try:
                if not all(map(torch.equal, works[number](), wanted[number])):
                    wrong.append(number)
            except BaseException as fault:  # a thread's own would go unseen
                wrong.append(fault)

    threads = [threading.Thread(target=repeat, args=(number % 3,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if nn.Linear(2, 2).weight.is_meta:
            wrong.append("made on meta meanwhile")
    assert not wrong
    assert torch.get_default_dtype() == torch.float32
    assert nn.Linear(2, 2).weight.device == CPU
    assert (torch.linspace, nn.init.normal_, nn.init.ones_) == before


def changed(folder: Path, copy: Path, key: str, value: Any) -> Path:
    """A folder of links to another's files, with one value of its config.json changed."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "config.json":
            (copy / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    *parts, last = key.split(".")
    inner = config
    for part in parts:
        inner = inner[part]
    inner[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    return copy
