"""A block that is pruned while it runs: against the same by hand, and in any number of batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from families import EXPERT_FAMILIES, has_experts
from secateur.blocks import onepass
from secateur.blocks.onepass import GroupSteps, groups_in_order, run_once
from secateur.blocks.stream import Batch, Stream
from secateur.checkpoint import Matrix, ResidentModel, find_blocks, find_matrices
from secateur.errors import ModelError, NumericalError, RecipeError
from secateur.sparsity import audit, parse_pattern
from tiny import EVERY_FAMILY, make_model, make_tokens

SEQUENCES, LENGTH = 8, 16
SHORT: dict[str, Any] = {"samples": SEQUENCES, "sequence_length": LENGTH}
ONE_PASS = {"method": "wanda", "schedule": "matrix", **SHORT}
WITHOUT_EXPERTS = [family for family in EVERY_FAMILY if not has_experts(family)]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every prunable matrix of a model, a copy, by block and name."""
    return {
        f"{number}.{matrix.name}": matrix.read().clone()
        for number, block in enumerate(find_blocks(model).modules)
        for matrix in find_matrices(block)
    }


def first_block(
    family: str, batch_size: int = 3, sequences: int = 5
) -> tuple[nn.Module, Stream, tuple[Matrix, ...]]:
    """The first block of a tiny model, its inputs, and what can be pruned in it."""
    source = ResidentModel(make_model(family), torch.device("cpu"), torch.float32)
    block = source.blocks.modules[0].requires_grad_(False)
    stream = Stream(source, make_tokens(sequences, LENGTH), batch_size)
    return block, stream, find_matrices(block)


def leaves(group: list[Matrix]) -> list[str]:
    return [matrix.kind.rpartition(".")[2] for matrix in group]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"],
                   ["down_proj"]]),
        ("gpt2", [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]),
        # attention and feed-forward side by side, on one normed input
        ("cohere", [["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], ["o_proj"],
                    ["down_proj"]]),
    ],
)  # fmt: skip
def test_groups_are_found_in_the_order_of_their_inputs(
    family: str, expected: list[list[str]]
) -> None:
    block, stream, matrices = first_block(family)
    groups = groups_in_order(block, 0, stream, matrices)
    assert groups is not None
    assert [leaves(group) for group in groups] == expected


def test_wanda_equals_pruning_matrix_after_matrix_by_hand() -> None:
    """Whatever reads what the masked matrices before it give, by torch alone."""
    model, tokens = make_model("llama"), make_tokens(SEQUENCES, LENGTH)
    by_hand = copy.deepcopy(model)
    layers = by_hand.model.layers
    with torch.no_grad():
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            for group in (
                [attention.q_proj, attention.k_proj, attention.v_proj],
                [attention.o_proj],
                [mlp.gate_proj, mlp.up_proj],
                [mlp.down_proj],
            ):
                read: list[Tensor] = []
                handle = group[0].register_forward_hook(lambda _, args, out: read.append(args[0]))  # noqa: B023
                by_hand(input_ids=tokens)  # all that comes before is pruned already
                handle.remove()
                norm = read[0].flatten(0, 1).norm(dim=0)
                for matrix in group:
                    importance = (matrix.weight.abs() * norm).view(-1, 4)
                    least = importance.argsort(dim=1)[:, :2]
                    keep = torch.ones_like(importance).scatter_(1, least, 0)
                    matrix.weight.mul_(keep.view_as(matrix.weight))
    secateur.prune(model, calibration=tokens, **ONE_PASS)
    expected, found = weights_of(by_hand), weights_of(model)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "gblm"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_batches_prune_as_one_does(method: str, batch_size: int) -> None:
    tokens = make_tokens(SEQUENCES, LENGTH)
    one, several = make_model("llama"), make_model("llama")
    options = {**ONE_PASS, "method": method, "calibration": tokens}
    secateur.prune(one, **options, batch_size=SEQUENCES)
    secateur.prune(several, **options, batch_size=batch_size)
    found = weights_of(several)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
        assert torch.equal(found[name] == 0, weight == 0)


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
@pytest.mark.parametrize("family", WITHOUT_EXPERTS)
def test_every_family_without_experts(family: str, pattern: str) -> None:
    model, tokens = make_model(family), make_tokens(SEQUENCES, LENGTH)
    by_block = make_model(family)
    run = secateur.prune(model, calibration=tokens, pattern=pattern, batch_size=3, **ONE_PASS)
    assert run.sparsity == 0.5
    for weight in weights_of(model).values():
        assert audit(weight, parse_pattern(pattern)).holds
    for block in run.blocks:
        assert block.notices == ()
        assert block.output_error is None
        assert all(0 < matrix.output_error < 1 for matrix in block.matrices)
    assert run.mean_output_error is None
    options = {**ONE_PASS, "schedule": "block", "pattern": pattern}
    secateur.prune(by_block, calibration=tokens, batch_size=3, **options)
    found, other = weights_of(model), weights_of(by_block)
    same = {name for name in found if torch.equal(found[name], other[name])}
    # What reads the first block's input sees the same in either schedule; the last matrix does not.
    stream = Stream(
        ResidentModel(make_model(family), torch.device("cpu"), torch.float32), tokens, 3
    )
    block_0 = stream.blocks.modules[0]
    groups = groups_in_order(block_0, 0, stream, find_matrices(block_0))
    assert groups is not None
    assert {f"0.{matrix.name}" for matrix in groups[0]} <= same
    assert len(same) < len(found)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_experts_fall_back_with_a_notice(family: str) -> None:
    tokens = make_tokens(SEQUENCES, LENGTH)
    run = secateur.prune(make_model(family), calibration=tokens, **ONE_PASS)
    told = [block.notices for block in run.blocks]
    assert any("pruned by the block schedule" in line for line in told[-1])
    assert run.blocks[-1].output_error is not None
    assert run.sparsity == 0.5
    if family == "deepseek_v3":  # its first block has none
        assert told[0] == ()
        assert run.blocks[0].output_error is None


@pytest.mark.parametrize("method", ["wanda++", "wanda++-ro", "wanda++-rgs"])
def test_methods_that_need_the_dense_block_refuse(method: str) -> None:
    with pytest.raises(RecipeError, match=rf"method {method.replace('+', '.')} needs .* schedule"):
        secateur.prune(
            make_model("llama"), calibration=make_tokens(), **ONE_PASS | {"method": method}
        )


def test_magnitude_needs_no_data_either_way() -> None:
    one, other = make_model("llama"), make_model("llama")
    secateur.prune(one, method="magnitude", schedule="matrix")
    secateur.prune(other, method="magnitude")
    found = weights_of(other)
    assert all(torch.equal(found[name], weight) for name, weight in weights_of(one).items())


def test_a_batch_moves_once_and_the_outputs_are_of_the_pruned_block() -> None:
    block, stream, matrices = first_block("llama")
    dense = copy.deepcopy(block)
    groups = groups_in_order(block, 0, stream, matrices)
    assert groups is not None
    before = list(stream.hidden)
    looked: list[tuple[int, int]] = []
    arrived: list[list[str]] = []

    def look(number: int, batch: Batch, inputs: Tensor) -> None:
        looked.append((number, len(inputs)))

    def prune(number: int) -> None:
        assert looked[-2:] == [(number, 3), (number, 2)]
        arrived.append(leaves(groups[number]))
        for matrix in groups[number]:
            matrix.write(matrix.read() * 0.5)

    calls: list[int] = []
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    run_once(block, 0, stream, groups, GroupSteps(look, prune))
    handle.remove()
    assert len(calls) == 2  # batches
    assert arrived == [leaves(group) for group in groups]
    assert not any(matrix.owner._forward_pre_hooks for matrix in matrices)
    for matrix in find_matrices(dense):
        matrix.write(matrix.read() * 0.5)
    with torch.no_grad():
        for batch, hidden, found in zip(stream.batches, before, stream.hidden, strict=True):
            batch.hidden = hidden
            assert torch.equal(batch.run(dense, 0), found)
            assert not found.requires_grad


def test_a_fault_ends_every_run_and_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    block, stream, matrices = first_block("llama")
    groups = groups_in_order(block, 0, stream, matrices)
    assert groups is not None
    runs: list[onepass._Run] = []

    class Known(onepass._Run):
        def __init__(self, *what: Any) -> None:
            super().__init__(*what)
            runs.append(self)

    def prune(number: int) -> None:
        assert not any(run.dead for run in runs)
        if number == 2:
            raise NumericalError("no")

    monkeypatch.setattr(onepass, "_Run", Known)
    with pytest.raises(NumericalError, match="no"):
        run_once(block, 0, stream, groups, GroupSteps(lambda *seen: None, prune))
    assert len(runs) == 2  # batches
    assert all(run.dead for run in runs)
    assert not any(matrix.owner._forward_pre_hooks for matrix in matrices)


@pytest.mark.parametrize("wrong", ["reversed", "parted", "joined"])
def test_another_way_through_the_block_is_noticed(wrong: str) -> None:
    block, stream, matrices = first_block("llama")
    groups = groups_in_order(block, 0, stream, matrices)
    assert groups is not None
    if wrong == "reversed":
        groups = groups[::-1]
    elif wrong == "parted":  # k_proj is to wait for an input that q_proj's batch has passed
        groups = [groups[0][:1], *groups[1:], groups[0][1:]]
    else:
        groups = [groups[0] + groups[1], *groups[2:]]
    with pytest.raises(ModelError, match="another way"):
        run_once(block, 0, stream, groups, GroupSteps(lambda *seen: None, lambda number: None))


class Twice(nn.Module):
    """A block that uses one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        once: Tensor = self.inner(hidden)
        twice: Tensor = self.inner(once)
        return twice


def test_a_matrix_that_is_used_twice_is_not_pruned_on_the_way() -> None:
    _, stream, _ = first_block("llama")
    block = Twice()
    assert groups_in_order(block, 0, stream, find_matrices(block)) is None
