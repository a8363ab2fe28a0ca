"""Odd models: patched and hooked blocks, matrices that nothing calls, blocks that hand on more."""

from __future__ import annotations

import copy
import types
from typing import Any, cast

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Gemma3nTextConfig,
    GlmMoeDsaConfig,
    LlamaForTokenClassification,
    LlamaModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

import secateur
from secateur.blocks.full_gradients import UpAndDown, full_gradients
from secateur.blocks.models_fault import models_fault
from secateur.blocks.replaced import replaced
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, find_blocks
from secateur.errors import ModelError, SecateurError
from secateur.evaluation import pass_through
from tiny import make_model, make_tokens

CPU = torch.device("cpu")
FEW: dict[str, Any] = {"samples": 4, "sequence_length": 16, "pattern": "2:4"}
DATA_METHODS = ("wanda", "sparsegpt", "alps", "gblm", "wanda++-rgs", "wanda++-ro", "wanda++")
QUICK = {"regional": {"rounds": 1, "samples": 2}}
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def resident(model: Any) -> Any:
    return ResidentModel(model, CPU, torch.float32)


def built(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def prune(model: Any, method: str, **more: Any) -> Any:
    quick = QUICK if method in ("wanda++", "wanda++-ro") else {}
    return secateur.prune(
        model, method=method, calibration=make_tokens(4, 16), **{**FEW, **quick, **more}
    )


def notices(run: Any) -> list[str]:
    return [line for stage in run.stages for block in stage.blocks for line in block.notices]


def shrunk(module: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A patched forward: the block's own, of half of its inputs; it counts its calls."""
    module.times = getattr(module, "times", 0) + 1
    return type(module).forward(module, hidden * 0.5, *args, **kwargs)


def test_a_patched_forward_is_what_runs_and_is_there_afterwards() -> None:
    model, tokens = make_model("llama"), make_tokens(4, 16)
    blocks = find_blocks(model).modules
    for block in blocks:
        block.forward = types.MethodType(shrunk, block)
    patched = [vars(block)["forward"] for block in blocks]
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    source = resident(model)
    stream = pass_through(source, tokens, 2)
    with source.open_surroundings() as opened, torch.no_grad():
        logits = torch.cat([stream.logits(opened, b, slice(None)) for b in stream.batches])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    times = [block.times for block in blocks]
    prune(model, "wanda")
    assert all(block.times > before for block, before in zip(blocks, times, strict=True))
    assert [vars(block)["forward"] for block in blocks] == patched
    with pytest.raises(ModelError):
        Stream(source, torch.full((1, 4), 10_000), 1)  # an index out of the vocabulary
    assert [vars(block)["forward"] for block in blocks] == patched
    assert not any("_call_impl" in vars(block) for block in blocks)


def test_hooks_of_blocks_act_once() -> None:
    """Also those of the first and the last block, where a hollow run begins and ends."""
    model, tokens = make_model("llama"), make_tokens(2, 16)
    first, *_, last = find_blocks(model).modules
    first.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    last.register_forward_hook(lambda module, args, output: output * 3)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    source = resident(model)
    stream = pass_through(source, tokens, 2)
    with source.open_surroundings() as opened, torch.no_grad():
        logits = stream.logits(opened, stream.batches[0], slice(None))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_hooks_of_accelerate_stay_at_work() -> None:
    model = dispatch_model(make_model("llama"), {"": "cpu"}, force_hooks=True)
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    wrappers = [vars(module).get("forward") for module in hooked]
    assert hooked
    run = prune(model, "wanda")
    assert run.sparsity == pytest.approx(0.5)
    assert [vars(module).get("forward") for module in hooked] == wrappers
    plain = make_model("llama")
    prune(plain, "wanda")
    for (name, value), other in zip(
        plain.named_parameters(), dict(model.named_parameters()).values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_what_is_replaced_is_put_back_after_an_error() -> None:
    module = nn.Linear(2, 2)
    mine = types.MethodType(shrunk, module)
    module.forward = mine

    def fail_inside() -> None:
        with replaced(module, forward=None, other=1):
            assert vars(module)["forward"] is None
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert vars(module)["forward"] is mine
    assert "other" not in vars(module)


@pytest.fixture(scope="module")
def mamba() -> PreTrainedModel:
    """A model whose mixer multiplies by `dt_proj.weight` itself. Not to be changed."""
    sizes = {name: SIZES[name] for name in SIZES if "heads" not in name}
    config = FalconMambaConfig(**sizes, state_size=8, time_step_rank=4)
    return built(config)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_a_matrix_that_its_block_never_calls_is_pruned_by_magnitude(
    method: str, mamba: PreTrainedModel
) -> None:
    model = copy.deepcopy(mamba)
    run = prune(model, method)
    assert run.sparsity == pytest.approx(0.5)
    told = [line for line in notices(run) if "dt_proj" in line]
    assert told[0] == (
        "mixer.dt_proj is not called as a linear layer by its block: pruned by magnitude"
    )
    for before, after in zip(find_blocks(mamba).modules, find_blocks(model).modules, strict=True):
        groups = before.mixer.dt_proj.weight.abs().reshape(-1, 4)
        kept = after.mixer.dt_proj.weight.reshape(-1, 4) != 0
        assert torch.equal(kept.sum(1), torch.full((len(kept),), 2))
        if method not in ("wanda++", "wanda++-ro"):  # which move weights, and mask them anew
            assert (
                groups.masked_fill(~kept, torch.inf).amin(1) >= groups[~kept].reshape(-1, 2).amax(1)
            ).all()


def test_a_matrix_that_is_called_in_some_blocks_only_and_the_matrix_schedule() -> None:
    model = make_model("llama")
    block = find_blocks(model).modules[1]
    block.mlp.forward = types.MethodType(
        lambda mlp, x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x))), block.mlp
    )
    for schedule in ("block", "matrix"):
        run = prune(copy.deepcopy(model), "wanda", schedule=schedule)
        assert run.sparsity == pytest.approx(0.5)
        told = [line for line in notices(run) if "gate_proj" in line]
        assert told == [
            "mlp.gate_proj is not called as a linear layer by its block: pruned by magnitude"
        ]


@pytest.mark.parametrize("method", ["gblm", "wanda++-rgs", "wanda++"])
def test_a_matrix_without_gradient_is_scored_by_wanda(method: str) -> None:
    model = make_model("llama")
    for block in find_blocks(model).modules:
        block.self_attn.q_proj.forward = types.MethodType(
            torch.no_grad()(lambda linear, x: nn.functional.linear(x, linear.weight)),
            block.self_attn.q_proj,
        )
    by_wanda, by_gradient = copy.deepcopy(model), copy.deepcopy(model)
    prune(by_wanda, "wanda")
    run = prune(by_gradient, method)
    assert "no gradient comes back to self_attn.q_proj: Wanda's score" in notices(run)
    expected, found = (
        cast("Any", find_blocks(pruned).modules[0]).self_attn.q_proj.weight
        for pruned in (by_wanda, by_gradient)
    )
    assert torch.equal(expected, found)


ODD = {
    "hidden states have shape [4, 1, 16, 32]": lambda: Gemma3nTextConfig(
        **{**SIZES, "num_key_value_heads": 2, "intermediate_size": [64, 64]},
        head_dim=8, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, laurel_rank=8,
        num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    ),
    "block 1 gets more than hidden states of what another returned": lambda: GlmMoeDsaConfig(
        **SIZES, moe_intermediate_size=48, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, n_shared_experts=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, index_n_heads=4, index_head_dim=16, index_topk=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", ODD)
def test_other_states_between_blocks_are_refused_alike_before_any_work(said: str) -> None:
    model = built(ODD[said]())
    before = copy.deepcopy(model.state_dict())
    lines = set()
    for work in (
        lambda: prune(model, "wanda"),
        lambda: prune(model, "wanda++"),
        lambda: prune(model, "gblm"),
        lambda: pass_through(resident(model), make_tokens(2, 16), 2),
    ):
        with pytest.raises(ModelError) as fault:
            work()
        lines.add(str(fault.value))
    (line,) = lines
    assert line.startswith(said)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("said", ["block 2 gets more than", "the output is made of more than"])
def test_what_is_made_of_hidden_states_on_their_way_is_refused(said: str) -> None:
    """Recorded with hollow blocks it would be what the embedding gives."""
    model = make_model("llama")

    def forward(self: Any, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPast:
        hidden = self.embed_tokens(input_ids)
        tables = self.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
        earlier = [hidden]
        for layer in self.layers:
            seen = torch.stack(earlier[:-1]) if said.startswith("block") and earlier[1:] else None
            hidden = layer(hidden, position_embeddings=tables, earlier=seen)
            earlier.append(hidden)
        ending = hidden if said.startswith("block") else hidden + earlier[1]
        return BaseModelOutputWithPast(last_hidden_state=self.norm(ending))

    model.model.forward = types.MethodType(forward, model.model)
    for work in (
        lambda: prune(model, "wanda"),
        lambda: pass_through(resident(model), make_tokens(2, 16), 2),
    ):
        with pytest.raises(ModelError, match=said):
            work()


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForTokenClassification])
def test_a_loss_without_a_head_is_refused_before_any_work(kind: Any, tmp_path: Any) -> None:
    model = kind(make_model("llama").config).eval()
    stream = Stream(resident(model), make_tokens(2, 16), 2)
    before = [hidden.clone() for hidden in stream.hidden]
    with pytest.raises(ModelError, match="no head that predicts tokens"):
        full_gradients(resident(model), stream, None, "l2", UpAndDown(tmp_path))
    assert all(torch.equal(*pair) for pair in zip(before, stream.hidden, strict=True))
    with pytest.raises(ModelError, match="no head that predicts tokens"):
        pass_through(resident(model), make_tokens(2, 16), 2)


def test_a_model_that_fails_by_itself_is_told_in_one_line() -> None:
    model = make_model("llama")
    find_blocks(model).modules[0].self_attn.head_dim = 7  # a configuration that lies
    lines = set()
    for work in (
        lambda: prune(model, "wanda"),
        lambda: prune(model, "gblm"),
        lambda: pass_through(resident(model), make_tokens(4, 16), 4),
    ):
        with pytest.raises(ModelError) as fault:
            work()
        assert isinstance(fault.value.__cause__, RuntimeError)
        lines.add(str(fault.value))
    assert all(line.startswith("the model's own code fails (") for line in lines)
    assert all("in block 0" in line for line in lines)


def test_only_what_is_the_models_fault_is_told_as_that() -> None:
    def fail(fault: BaseException) -> Any:
        raise fault

    with (
        pytest.raises(
            ModelError, match=r"not enough memory .*3 GiB. in block 3; try --batch-size 1"
        ),
        models_fault("block 3"),
    ):
        fail(torch.OutOfMemoryError("of 3 GiB"))
    with pytest.raises(KeyboardInterrupt), models_fault("block 3"):
        fail(KeyboardInterrupt())
    with pytest.raises(SecateurError, match=r"^mine$"), models_fault("block 3"):
        fail(SecateurError("mine"))
    module = nn.Identity()  # foreign code that calls ours, which has a fault
    module.register_forward_hook(lambda *seen: replaced(1).__enter__())  # type: ignore[arg-type]
    with pytest.raises(TypeError), models_fault("block 3"):
        module(1)
    with pytest.raises(ModelError, match="the model's own code fails"), models_fault("block 3"):
        nn.Module()(1)  # has no forward
