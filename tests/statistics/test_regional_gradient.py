"""What the observer gathers in one pass, against autograd and sums written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, PLAIN_FAMILIES
from secateur.blocks.observe import observe
from secateur.blocks.observer import ToGather
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.errors import ModelError
from secateur.statistics import Need
from tiny import EVERY_FAMILY, make_model, make_tokens

BOTH = ToGather(frozenset({Need.INPUT_NORM, Need.REGIONAL_GRADIENT, Need.HESSIAN}))


def block_one(family: str, batch_size: int = 4, sequences: int = 6) -> Any:
    """Block 1 of a tiny model, its stream one block up, and its matrices."""
    model = make_model(family)
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, make_tokens(sequences, 16), batch_size)
    stream.advance(source.blocks.modules[0], 0)
    block = source.blocks.modules[1].requires_grad_(False)
    return block, stream, find_matrices(block)


def part(matrix: Any, parameter: Any) -> Any:
    """What of a parameter, or of its gradient, is this matrix: [out, in]."""
    return matrix.as_stored(parameter if matrix.expert is None else parameter[matrix.expert])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_regional_gradient_equals_autograd_by_hand(family: str) -> None:
    block, stream, matrices = block_one(family)
    observer = observe(block, 1, stream, matrices, BOTH).observer
    squares = {matrix.name: torch.zeros(matrix.shape) for matrix in matrices}
    for batch in stream.batches:
        for row in range(len(batch.hidden)):
            named = dict(block.named_parameters())
            parameters = {m.parameter: named[m.parameter] for m in matrices}
            block.requires_grad_(True)
            call = batch.call_for(1, torch.tensor([row]))
            loss = call(block, batch.hidden[[row]]).norm()  # of one sequence
            gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            block.requires_grad_(False)
            of = dict(zip(parameters, gradients, strict=True))
            for matrix in matrices:
                squares[matrix.name] += part(matrix, of[matrix.parameter]).square()
    for matrix in matrices:
        expected = (squares[matrix.name] / stream.sequences).sqrt()
        found = observer.values(matrix)[Need.REGIONAL_GRADIENT]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=matrix.name)


@pytest.mark.parametrize("family", [*FAMILIES, *PLAIN_FAMILIES])
def test_norms_and_hessians_are_of_what_each_matrix_reads(family: str) -> None:
    block, stream, matrices = block_one(family)
    seen: dict[str, list[Tensor]] = {matrix.name: [] for matrix in matrices}

    def keep_inputs(name: str) -> Any:
        return lambda module, args: seen[name].append(args[0].flatten(0, -2))

    handles = [
        matrix.owner.register_forward_pre_hook(keep_inputs(matrix.name)) for matrix in matrices
    ]
    with torch.no_grad():
        for batch in stream.batches:
            batch.run(block, 1)
    for handle in handles:
        handle.remove()
    observer = observe(block, 1, stream, matrices, BOTH).observer
    for matrix in matrices:
        inputs = torch.cat(seen[matrix.name])
        found = observer.values(matrix)
        torch.testing.assert_close(found[Need.INPUT_NORM], inputs.norm(dim=0))
        hessian = 2 / stream.sequences * inputs.T @ inputs
        torch.testing.assert_close(found[Need.HESSIAN], hessian, rtol=1e-4, atol=1e-4)


def test_matrices_that_read_the_same_input_share_one_statistic() -> None:
    block, stream, matrices = block_one("llama")
    observer = observe(block, 1, stream, matrices, BOTH).observer
    groups = [[matrix.kind.split(".")[-1] for matrix in group] for group in observer.groups]
    assert groups == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"],
                      ["down_proj"]]  # fmt: skip


def test_dense_outputs_fall_out_of_the_same_pass() -> None:
    block, stream, matrices = block_one("gpt2")
    outputs = observe(block, 1, stream, matrices, BOTH).outputs
    with torch.no_grad():
        for batch, output in zip(stream.batches, outputs, strict=True):
            torch.testing.assert_close(output, batch.run(block, 1), rtol=1e-6, atol=1e-6)
            assert not output.requires_grad


def test_one_forward_pass_whatever_is_needed() -> None:
    block, stream, matrices = block_one("llama")
    calls = []
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    observe(block, 1, stream, matrices, BOTH)
    handle.remove()
    assert len(calls) == len(stream.batches)


def test_hooks_are_removed_even_after_an_error() -> None:
    block, stream, matrices = block_one("llama")
    stream.batches[1].hidden = torch.zeros(1, 1, 5)  # of the wrong width
    with pytest.raises(ModelError, match="the model's own code fails"):
        observe(block, 1, stream, matrices, BOTH)
    assert not any(module._forward_hooks for module in block.modules())
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_the_size_of_batches_changes_nothing_but_rounding() -> None:
    results = []
    for batch_size in (1, 4, 6):
        block, stream, matrices = block_one("qwen2", batch_size)
        observer = observe(block, 1, stream, matrices, BOTH).observer
        results.append(observer.values(matrices[0])[Need.REGIONAL_GRADIENT])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
