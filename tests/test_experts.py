"""Fused experts: what is seen of each, against a loop over the experts written out by hand."""

import pytest
import torch

import secateur
from families import EXPERT_FAMILIES
from secateur.blocks.observe import Observer, observe
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.checkpoint.matrices import is_fused_experts, with_weights
from secateur.methods import every
from secateur.sparsity import NofM, keep_mask
from secateur.statistics import Need
from tiny import make_model, make_tokens

BOTH = frozenset({Need.INPUT_NORM, Need.HESSIAN})
IMPLEMENTATIONS = ["eager", "grouped_mm"]
SHORT = {"samples": 6, "sequence_length": 16}


def last_block(family, implementation="grouped_mm", model=None):
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


def calls_of(experts, block, index, stream):
    """What the model hands its experts, by batch, as the model itself runs: x, experts chosen."""
    calls = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append(args[:2]))
    with torch.no_grad():
        outputs = [batch.run(block, index) for batch in stream.batches]
    handle.remove()
    return calls, outputs


def by_hand(experts, x, chosen, expert):
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
def test_statistics_equal_a_loop_over_the_experts(family, implementation):
    block, index, stream, matrices, experts = last_block(family, implementation)
    calls, outputs = calls_of(experts, block, index, stream)
    observer, found_outputs = observe(block, index, stream, matrices, BOTH)
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
        found = observer.values(matrix)
        torch.testing.assert_close(found[Need.INPUT_NORM], squares.sqrt(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[Need.HESSIAN], hessian, rtol=1e-4, atol=1e-4)
    assert seen == 2 * 6 * 16 * 2  # two matrices, every token twice


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_every_expert_may_be_shown_every_token(family):
    block, index, stream, matrices, experts = last_block(family)
    calls, outputs = calls_of(experts, block, index, stream)
    observer, found_outputs = observe(block, index, stream, matrices, BOTH, route_all=True)
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


def test_experts_run_as_the_model_runs_them_when_nobody_watches():
    block, index, stream, matrices, experts = last_block("mixtral")
    observe(block, index, stream, matrices, BOTH)
    assert "forward" not in vars(experts)
    with Observer(matrices, BOTH).watch(4):
        assert "forward" in vars(experts)
    stream.batches[0].hidden = torch.zeros(1, 1, 5)  # of the wrong width
    with pytest.raises(RuntimeError):
        observe(block, index, stream, matrices, BOTH)
    assert "forward" not in vars(experts)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_an_expert_is_a_slice_of_its_parameter(family):
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


def shunned(model, expert=1):
    """The model, with a router that never sends a token to an expert of the last block."""
    gate = model.model.layers[-1].mlp.gate
    calculate = gate.forward

    def forward(hidden):
        logits, _, _ = calculate(hidden)
        logits[:, expert] = -torch.inf
        scores, chosen = torch.topk(logits.softmax(-1), gate.top_k)
        return logits, scores / scores.sum(-1, keepdim=True), chosen

    gate.forward = forward
    return model


@pytest.mark.parametrize("method", [method.name for method in every()])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude(method):
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


def test_an_expert_that_no_token_reaches_is_not_starved_when_shown_all():
    model = shunned(make_model("mixtral"))
    dense = model.model.layers[1].mlp.experts.down_proj[1].detach().clone()
    run = secateur.prune(
        model, method="sparsegpt", calibration=make_tokens(6, 16), route_all=True, **SHORT
    )
    found = model.model.layers[1].mlp.experts.down_proj[1].detach()
    assert not torch.equal(found, dense * (found != 0))  # solved, not only masked
    assert not [line for block in run.blocks for line in block.notices]


def test_how_many_tokens_starve_an_expert_is_asked():
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
