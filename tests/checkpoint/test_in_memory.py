"""A model in memory that cannot be pruned where it is is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
)

import secateur
from secateur.errors import DataError, ModelError, SecateurError
from tiny import make_model, make_tokenizer, make_tokens, save

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"])


def first(model: PreTrainedModel) -> nn.Module:
    """One matrix of the first block."""
    layer: nn.Module = model.model.layers[0].self_attn.q_proj
    return layer


def with_adapter(model: PreTrainedModel) -> PreTrainedModel:
    model.add_adapter(LORA)
    return model


def with_masks(model: PreTrainedModel) -> PreTrainedModel:
    prune.l1_unstructured(first(model), "weight", 0.3)
    return model


def with_norms(model: PreTrainedModel, norm: Callable[[nn.Module], object]) -> PreTrainedModel:
    norm(first(model))
    return model


def with_a_part_on_meta(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[2].to("meta")
    return model


def with_a_compiled_part(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[0] = torch.compile(model.model.layers[0])
    return model


def with_integers(model: PreTrainedModel) -> PreTrainedModel:
    weight = first(model).get_parameter("weight").to(torch.int8)
    first(model).weight = nn.Parameter(weight, requires_grad=False)
    return model


def with_weight(change: Callable[[Tensor], Tensor]) -> Callable[[PreTrainedModel], PreTrainedModel]:
    def put(model: PreTrainedModel) -> PreTrainedModel:
        first(model).weight = nn.Parameter(change(first(model).get_parameter("weight").detach()))
        return model

    return put


class Packed(nn.Module):
    """A layer as quantisers put it in the place of another: integers, and how to scale them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer(
            "qweight", (layer.get_parameter("weight").detach() * 1000).to(torch.int32)
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_buffer("qweight") / 1000)


def with_packed(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[0].self_attn.q_proj = Packed(first(model))
    return model


def partly_quantised(model: PreTrainedModel) -> PreTrainedModel:
    torch.ao.quantization.quantize_dynamic(
        model.model.layers[0], {"self_attn.q_proj"}, dtype=torch.qint8, inplace=True
    )
    return model


def with_a_buffer_on_meta(model: PreTrainedModel) -> PreTrainedModel:
    model.model.rotary_emb.to("meta")
    return model


def damaged_at_the_end(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    return model


def inferred(model: PreTrainedModel) -> PreTrainedModel:
    with torch.inference_mode():
        return make_model("llama")


def encoder_decoder(model: PreTrainedModel) -> PreTrainedModel:
    sizes = {
        f"{half}_{what}": number
        for half in ("encoder", "decoder")
        for what, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
    }
    return BartForConditionalGeneration(BartConfig(vocab_size=128, d_model=32, **sizes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_adapter, "merge_and_unload"),
        (lambda model: peft.get_peft_model(model, LORA), "merge_and_unload"),
        (lambda model: peft.get_peft_model(model, LORA).base_model.model, "an adapter"),
        (torch.compile, r"\._orig_mod"),
        (nn.DataParallel, r"its \.module"),
        (with_a_compiled_part, r"model\.layers\.0\._orig_mod"),
        (with_masks, r"prune\.remove"),
        (lambda model: with_norms(model, parametrizations.weight_norm), "remove_parametrizations"),
        (lambda model: with_norms(model, weight_norm), "remove_weight_norm"),
        (lambda model: (weight_norm(model.model.norm), model)[1], "remove_weight_norm"),
        (lambda model: (spectral_norm(model.model.embed_tokens), model)[1], "remove_weight_norm"),
        (with_weight(Tensor.to_sparse), "stored as sparse_coo"),
        (with_weight(lambda weight: weight[:1].expand(weight.shape)), "share their memory"),
        (with_packed, "a quantised Packed"),
        (partly_quantised, "a quantised Linear"),
        (with_a_buffer_on_meta, "giving its folder"),
        (with_a_part_on_meta, "giving its folder"),
        (cpu_offload, "giving its folder"),
        (with_integers, "stored as int8"),
        (inferred, "inference_mode"),
        (encoder_decoder, "an encoder-decoder"),
        (lambda model: nn.Linear(2, 2), "no model of transformers"),
        (lambda model: None, "a NoneType is no model"),
        (lambda model: [model], "a list is no model"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused_before_the_first_block(change: Callable[[Any], Any], said: str) -> None:
    model = make_model("llama")
    before = model.model.layers[1].mlp.down_proj.weight.clone()
    given = change(model)
    with pytest.raises(ModelError, match=said) as caught:
        secateur.prune(given, method="magnitude")
    assert "\n" not in str(caught.value)
    if change is not cpu_offload:
        assert torch.equal(model.model.layers[1].mlp.down_proj.weight, before)


def test_a_damaged_last_block_leaves_the_first_as_it_was() -> None:
    model = damaged_at_the_end(make_model("llama"))
    before = first(model).get_parameter("weight").clone()
    with pytest.raises(SecateurError, match="not finite"):
        secateur.prune(model, method="magnitude")
    assert torch.equal(first(model).get_parameter("weight"), before)


@pytest.mark.parametrize(
    "door", ["evaluate", "check", "recover", "compare", "pack", "unpack", "load"]
)
def test_other_doors_want_a_folder(door: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if door in ("evaluate", "recover", "compare"):
        options["text"] = "builtin"
    if door in ("recover", "compare", "pack", "unpack"):
        options["out"] = tmp_path / "out"
    for model in (make_model("llama"), None, 5):
        with pytest.raises(ModelError, match=r"no folder|no model"):
            getattr(secateur, door)(model, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_a_head(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    model, tokens = kind(make_model("llama").config).eval(), make_tokens(4, 16)
    few: dict[str, Any] = {"calibration": tokens, "sequence_length": 16}
    with pytest.raises(ModelError, match="no head that predicts tokens"):
        secateur.prune(model, method="gblm", **few)
    with pytest.raises(ModelError, match="no head that predicts tokens"):
        secateur.prune(model, method="wanda", text="builtin", tokenizer=make_tokenizer(), **few)
    folder = save(model, tmp_path / "model")
    with pytest.raises(SecateurError, match="the files hold no output head"):
        secateur.prune(folder, method="magnitude", out=tmp_path / "out")
    assert secateur.prune(model, method="wanda", **few).sparsity == 0.5


def test_text_for_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(DataError, match="tokenizer="):
        secateur.prune(make_model("llama"), method="wanda", calibration="builtin")


def pruned(method: str, around: Any, change: Callable[[PreTrainedModel], object]) -> list[Tensor]:
    model, tokens = make_model("llama"), make_tokens(4, 16)
    change(model)
    with around:
        secateur.prune(model, method=method, calibration=tokens, sequence_length=16)
    return list(model.parameters())


def compiled_in_place(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager")


def compiled_forwards(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.forward = torch.compile(layer.mlp.forward, backend="eager")
    model.forward = torch.compile(model.forward, backend="eager")


def with_odd_buffers(model: PreTrainedModel) -> None:
    model.model.layers[1].register_buffer("scale", torch.ones(3).to(torch.float8_e4m3fn))
    model.model.layers[1].register_buffer("places", torch.eye(3).to_sparse())


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("method", ["sparsegpt", "gblm"])
@pytest.mark.filterwarnings("ignore")
def test_what_the_caller_set_changes_no_bit(method: str) -> None:
    def nothing(model: PreTrainedModel) -> None:
        """The model as it is."""

    wanted = pruned(method, torch.enable_grad(), nothing)
    for around, change in (
        (torch.autocast("cpu", dtype=torch.bfloat16), nothing),
        (torch.inference_mode(), nothing),
        (torch.device("meta"), nothing),
        (products_in_bfloat16(), nothing),
        (torch.enable_grad(), compiled_in_place),
        (torch.enable_grad(), compiled_forwards),
        (torch.enable_grad(), with_odd_buffers),
    ):
        assert all(map(torch.equal, pruned(method, around, change), wanted))
