"""Fused experts: what is seen of each, against a loop over the experts written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateur
from families import EXPERT_FAMILIES
from secateur.blocks.observe import observe
from secateur.blocks.observer import Observer, ToGather
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, StreamedModel, find_matrices, open_model
from secateur.checkpoint.matrices import is_fused_experts, with_weights
from secateur.errors import CheckpointError, ModelError
from secateur.methods import every
from secateur.sparsity import NofM, keep_mask
from secateur.statistics import Need
from tiny import make_model, make_tokens, save

BOTH = ToGather(frozenset({Need.INPUT_NORM, Need.HESSIAN}))
IMPLEMENTATIONS = ["eager", "grouped_mm"]
SHORT: dict[str, Any] = {"samples": 6, "sequence_length": 16}


def last_block(family: str, implementation: str = "grouped_mm", model: Any = None) -> Any:
    """The last block of a tiny model, its stream, its matrices and its fused experts."""
    model = model or make_model(family)
    model.set_experts_implementation(implementation)
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, make_tokens(6, 16), 4)
    for index, block in enumerate(source.blocks.modules[:-1]):
        stream.advance(block, index)
    block = source.blocks.modules[-1].requires_grad_(False)
    experts = next(module for module in block.modules() if is_fused_experts(module))
    return block, len(source.blocks) - 1, stream, find_matrices(block), experts


def calls_of(experts: Any, block: Any, index: int, stream: Any) -> Any:
    """What the model hands its experts, by batch, as the model itself runs: x, experts chosen."""
    calls = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append(args[:2]))
    with torch.no_grad():
        outputs = [batch.run(block, index) for batch in stream.batches]
    handle.remove()
    return calls, outputs


def by_hand(experts: Any, x: Tensor, chosen: Any, expert: int) -> Any:
    """What one expert's two matrices read: rows of the tokens that chose it, in order."""
    rows = [token for token in range(len(x)) if expert in chosen[token].tolist()]
    routed = x[rows]
    weight = experts.gate_up_proj[expert]
    both = routed @ (weight if experts.is_transposed else weight.T)
    if experts.has_bias:
        both = both + experts.gate_up_proj_bias[expert]
    if experts.is_concatenated:
        gate, up = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        inner = experts.act_fn(gate) * up
    else:  # gpt-oss
        gate, up = both[:, 0::2].clamp(max=experts.limit), both[:, 1::2]
        up = up.clamp(-experts.limit, experts.limit)
        inner = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    return {"gate_up_proj": (rows, routed), "down_proj": (rows, inner)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_statistics_equal_a_loop_over_the_experts(family: str, implementation: str) -> None:
    block, index, stream, matrices, experts = last_block(family, implementation)
    calls, outputs = calls_of(experts, block, index, stream)
    observed = observe(block, index, stream, matrices, BOTH)
    observer, found_outputs = observed.observer, observed.outputs
    for found, output in zip(found_outputs, outputs, strict=True):
        torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-5)
    fused = [matrix for matrix in matrices if matrix.expert is not None]
    assert len(fused) == 2 * experts.num_experts
    seen = 0
    for matrix in fused:
        leaf = matrix.parameter.split(".")[-1]
        squares, hessian = (
            torch.zeros(matrix.shape[1]),
            torch.zeros(matrix.shape[1], matrix.shape[1]),
        )
        for x, chosen in calls:
            rows, inputs = by_hand(experts, x, chosen, matrix.expert)[leaf]
            squares += inputs.square().sum(0)
            hessian += 2 * inputs.T @ inputs / stream.sequences
            seen += len(rows)
        values = observer.values(matrix)
        torch.testing.assert_close(values[Need.INPUT_NORM], squares.sqrt(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[Need.HESSIAN], hessian, rtol=1e-4, atol=1e-4)
    assert seen == 2 * 6 * 16 * 2  # two matrices, every token twice


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_every_expert_may_be_shown_every_token(family: str) -> None:
    block, index, stream, matrices, experts = last_block(family)
    calls, outputs = calls_of(experts, block, index, stream)
    observed = observe(block, index, stream, matrices, replace(BOTH, route_all=True))
    observer, found_outputs = observed.observer, observed.outputs
    torch.testing.assert_close(torch.cat(found_outputs), torch.cat(outputs), rtol=1e-5, atol=1e-5)
    inputs = torch.cat([x for x, _ in calls])
    everywhere = torch.arange(experts.num_experts).expand(len(inputs), -1)
    for matrix in matrices:
        if matrix.expert is not None:
            leaf = matrix.parameter.split(".")[-1]
            _, seen = by_hand(experts, inputs, everywhere, matrix.expert)[leaf]
            found = observer.values(matrix)
            torch.testing.assert_close(
                found[Need.INPUT_NORM], seen.norm(dim=0), rtol=1e-4, atol=1e-5
            )
            hessian = 2 / stream.sequences * seen.T @ seen
            torch.testing.assert_close(found[Need.HESSIAN], hessian, rtol=1e-4, atol=1e-4)


def test_experts_run_as_the_model_runs_them_when_nobody_watches() -> None:
    block, index, stream, matrices, experts = last_block("mixtral")
    observe(block, index, stream, matrices, BOTH)
    assert "forward" not in vars(experts)
    with Observer(matrices, BOTH).watch(4):
        assert "forward" in vars(experts)
    stream.batches[0].hidden = torch.zeros(1, 1, 5)  # of the wrong width
    with pytest.raises(ModelError, match="in block 1"):
        observe(block, index, stream, matrices, BOTH)
    assert "forward" not in vars(experts)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_an_expert_is_a_slice_of_its_parameter(family: str) -> None:
    block, _, _, matrices, experts = last_block(family)
    matrix = next(m for m in matrices if m.expert == 2 and m.kind.endswith("down_proj"))
    before = experts.down_proj.clone()
    matrix.write(torch.full(matrix.shape, 0.5))
    changed = (experts.down_proj != before).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False]
    assert matrix.shape == (32, 24)  # [out, in], whichever way it lies
    new = {matrix.name: torch.ones(matrix.shape, requires_grad=True)}
    ((name, whole),) = with_weights([matrix], new, torch.float32).items()
    assert torch.equal(dict(block.named_parameters())[name][3], whole[3])
    assert (whole[2] == 1).all()
    (gradient,) = torch.autograd.grad(whole.sum(), list(new.values()))
    assert (gradient == 1).all()


def shunned(model: Any, expert: int = 1) -> Any:
    """The model, with a router that never sends a token to an expert of the last block."""
    gate = model.model.layers[-1].mlp.gate
    calculate = gate.forward

    def forward(hidden: Tensor) -> Any:
        logits, _, _ = calculate(hidden)
        logits[:, expert] = -torch.inf
        scores, chosen = torch.topk(logits.softmax(-1), gate.top_k)
        return logits, scores / scores.sum(-1, keepdim=True), chosen

    gate.forward = forward
    return model


@pytest.mark.parametrize("method", [method.name for method in every()])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude(method: str) -> None:
    model = shunned(make_model("mixtral"))
    dense = model.model.layers[1].mlp.experts.down_proj[1].detach().clone()
    run = secateur.prune(model, method=method, calibration=make_tokens(6, 16), **SHORT)
    found = model.model.layers[1].mlp.experts.down_proj[1]
    assert torch.equal(found, dense * keep_mask(dense.abs(), NofM(2, 4)))
    others = model.model.layers[1].mlp.experts.down_proj.detach()
    assert torch.isfinite(others).all()
    starved = [line for line in run.blocks[1].notices if "reached expert" in line]
    if method == "magnitude":  # which needs no tokens
        assert not starved
    else:
        (line,) = starved
        assert line == (
            "model.layers.1.mlp.experts: fewer than 32 tokens reached expert 1: pruned by magnitude"
        )
    unseen = {matrix.name: matrix for matrix in run.blocks[1].matrices}
    assert unseen["model.layers.1.mlp.experts.1.down_proj"].output_error is None
    assert 0 < unseen["model.layers.1.mlp.experts.0.down_proj"].output_error < 1


def test_an_expert_that_no_token_reaches_is_not_starved_when_shown_all() -> None:
    model = shunned(make_model("mixtral"))
    dense = model.model.layers[1].mlp.experts.down_proj[1].detach().clone()
    run = secateur.prune(
        model, method="sparsegpt", calibration=make_tokens(6, 16), route_all=True, **SHORT
    )
    found = model.model.layers[1].mlp.experts.down_proj[1].detach()
    assert not torch.equal(found, dense * (found != 0))  # solved, not only masked
    assert not [line for block in run.blocks for line in block.notices]


def test_how_many_tokens_starve_an_expert_is_asked() -> None:
    tokens = make_tokens(6, 16)
    few = secateur.prune(
        make_model("mixtral"), method="wanda", calibration=tokens, expert_tokens=97, **SHORT
    )
    assert len(few.blocks[0].notices) == 1
    assert few.blocks[0].notices[0].endswith("expert 0, 1, 2, 3: pruned by magnitude")
    enough = secateur.prune(
        make_model("mixtral"), method="wanda", calibration=tokens, expert_tokens=1, **SHORT
    )
    assert not enough.blocks[0].notices


def mixture(folder: Path, change: Any) -> Any:
    """A tiny Mixtral whose tensors were changed: name -> tensor, in place."""
    save(make_model("mixtral", dtype=torch.bfloat16), folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


W1 = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


def test_experts_are_stacked_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Ten comes after two, in the parameter as in the files."""
    model = make_model("mixtral", num_local_experts=12, dtype=torch.bfloat16)
    folder = save(model, tmp_path / "twelve")
    source = open_model(folder, torch.device("cpu"), torch.float32)
    assert isinstance(source, StreamedModel)
    with source.open_block(1) as block:
        for name, parameter in model.model.layers[1].named_parameters():
            assert torch.equal(dict(block.named_parameters())[name], parameter.float()), name
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stored = source.checkpoint.load(source.naming.tensors_of(name))
    parted = source.naming.part(name, source.naming.join(name, stored))
    assert len(stored) == 24
    assert {key: value.tolist() for key, value in parted.items()} == {
        key: value.tolist() for key, value in stored.items()
    }


def test_only_the_experts_of_one_block_are_in_memory(tmp_path: Path) -> None:
    source = open_model(save(make_model("mixtral"), tmp_path / "model"), torch.device("cpu"))
    first, last = (block.mlp.experts for block in source.blocks.modules)
    assert first.down_proj.is_meta
    with source.open_block(0):
        assert not first.down_proj.is_meta
        assert last.down_proj.is_meta
    assert first.down_proj.is_meta


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: t.pop(W1),
            r"the 7 tensors of 'model\.layers\.0\.mlp\.experts\.gate_up_proj' do",
        ),
        (lambda t: t.update({W1: t[W1][:8].clone()}), "do not fit together"),
        (
            lambda t: [t.pop(W1.replace("3.w1", f"3.w{n}")) for n in (1, 3)],
            r"make up shape \[3, 48, 32\] .*; wanted \[4, 48, 32\]",
        ),
    ],
)
def test_a_damaged_mixture_is_named(tmp_path: Path, change: Any, complaint: str) -> None:
    folder = mixture(tmp_path / "damaged", change)
    with pytest.raises(CheckpointError, match=complaint):
        open_model(folder, torch.device("cpu"))


def test_experts_in_two_dtypes_are_loaded_whole(tmp_path: Path) -> None:
    folder = mixture(tmp_path / "mixed", lambda t: t.update({W1: t[W1].float()}))
    assert isinstance(open_model(folder, torch.device("cpu")), ResidentModel)
