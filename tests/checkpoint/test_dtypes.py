"""Every tensor has the dtype and the bits that `from_pretrained(dtype=...)` gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
from secateur.checkpoint import BlockModel, Checkpoint, ResidentModel, StreamedModel
from tiny import EVERY_FAMILY, make_model, make_tokens, save

CPU = torch.device("cpu")


def opened(source: BlockModel) -> dict[str, Tensor]:
    """Every parameter and buffer of a model as it is while its piece is open."""
    tensors: dict[str, Tensor] = {}

    def take(model: PreTrainedModel) -> None:
        for named in (model.named_parameters(), model.named_buffers()):
            real = {name: tensor.data.clone() for name, tensor in named if not tensor.is_meta}
            tensors.update(real)

    inside = tuple(source.blocks.prefix(index) for index in range(len(source.blocks)))
    with source.open_surroundings() as model:
        take(model)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}
    for index in range(len(source.blocks)):
        with source.open_block(index) as block:
            prefix = source.blocks.prefix(index)
            for named in (block.named_parameters(), block.named_buffers()):
                tensors.update({prefix + name: tensor.data.clone() for name, tensor in named})
    return tensors


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_as_transformers_loads_it(family: str, tmp_path: Path) -> None:
    folder = save(make_model(family), tmp_path)
    held = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        wanted = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
        for source in (
            StreamedModel(Checkpoint(folder), CPU, dtype),
            ResidentModel(held, CPU, dtype),
        ):
            tensors = opened(source)
            assert set(tensors) == set(wanted)
            for name, tensor in tensors.items():
                assert tensor.dtype == wanted[name].dtype, name
                assert torch.equal(tensor, wanted[name]), name


def test_a_bias_that_chooses_experts_is_not_rounded(tmp_path: Path) -> None:
    model = make_model("deepseek_v3", n_routed_experts=32)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            assert buffer.dtype == torch.float32
            buffer.copy_(torch.empty_like(buffer).uniform_(6.8, 7.1))
    folder, tokens = save(model, tmp_path / "model"), make_tokens(8, 32)
    text = tmp_path / "tokens.safetensors"
    save_file({"input_ids": tokens}, text)
    measured = secateur.evaluate(folder, text=text, dtype="bfloat16", sequence_length=32)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                loaded(input_ids=row[None]).logits[0, :-1].float(), row[1:]
            )
            for row in tokens
        ]
    assert measured.perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-6)


def test_whole_numbers_are_weights_too(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path)
    path, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(path)
    tensors[name] = (10 * tensors[name]).to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tensor = opened(StreamedModel(Checkpoint(folder), CPU, torch.bfloat16))[name]
    assert torch.equal(tensor, loaded.get_parameter(name))
