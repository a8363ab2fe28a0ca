"""The counted arithmetic of `benchmarks/floor.py`, against what torch counts while it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from secateur.methods.alps import ALPSParams, alps
from secateur.sparsity import NofM
from secateur.statistics import Hessian, Need, Statistics

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from flops import (
    ALPS_ITERATIONS,
    ALPS_PENALTIES,
    ALPS_REFINEMENT,
    Count,
    Shapes,
    by_phase,
    count,
)

SEQUENCES, LENGTH = 3, 8


@pytest.fixture
def model() -> Any:
    """Attention by plain products, which torch counts in full."""
    model = tiny.make_model("llama", _attn_implementation="eager")
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    return model.requires_grad_(False)


@pytest.fixture
def shapes(model: Any) -> Shapes:
    return Shapes.of(model.config)


@pytest.fixture
def one(shapes: Shapes) -> Count:
    return Count(shapes, SEQUENCES, LENGTH, causal=False)


def run(model: Any, backward_from: int | None = None) -> tuple[int, int]:
    """Operations of the blocks, forward and backward, as torch counts them.

    Args:
        model: whose blocks run, without embedding and head.
        backward_from: the gradients of all matrices from this block on; none: forward only.
    """
    width = model.config.hidden_size
    hidden = torch.randn(SEQUENCES, LENGTH, width)
    place = torch.arange(LENGTH)[None]
    rotary = model.model.rotary_emb(hidden, place)
    if backward_from is not None:
        for weight in model.model.layers[backward_from:].parameters():
            weight.requires_grad_(weight.dim() == 2)  # a norm below q, k, v would ask for more
    with FlopCounterMode(display=False) as forward:
        for block in model.model.layers:
            hidden = block(hidden, position_embeddings=rotary, position_ids=place)
    with FlopCounterMode(display=False) as backward:
        if backward_from is not None:
            hidden.square().sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_shapes_are_those_of_the_model(model: Any, shapes: Shapes) -> None:
    block = model.model.layers[0]
    found = {
        name.removesuffix("_proj.weight").rpartition(".")[2]: tuple(weight.shape)
        for name, weight in block.named_parameters()
        if weight.dim() == 2
    }
    assert found == shapes.matrices
    assert shapes.blocks == len(model.model.layers)


def test_a_forward_pass(model: Any, shapes: Shapes, one: Count) -> None:
    forward, _ = run(model)
    assert forward == shapes.blocks * one.forward


def test_a_backward_pass_within_one_block(model: Any, shapes: Shapes, one: Count) -> None:
    _, backward = run(model, backward_from=shapes.blocks - 1)
    assert backward == one.linear + one.to_inputs + 2 * one.attention


def test_a_backward_pass_through_all_blocks(model: Any, shapes: Shapes, one: Count) -> None:
    _, backward = run(model, backward_from=0)
    parts = count("gblm", shapes, SEQUENCES, LENGTH, causal=False)
    head = shapes.head * SEQUENCES * LENGTH
    assert backward == parts["to weights"] + parts["to inputs"] - head


def test_the_head(model: Any, shapes: Shapes) -> None:
    hidden = torch.randn(SEQUENCES, LENGTH, model.config.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        model.lm_head(hidden).square().sum().backward()
    assert counted.get_total_flops() == 2 * shapes.head * SEQUENCES * LENGTH


def test_hessians(shapes: Shapes, one: Count) -> None:
    widths = [shapes.matrices[group[0]][1] for group in shapes.inputs]
    with FlopCounterMode(display=False) as counted:
        for width in widths:
            Hessian(width).add([torch.randn(LENGTH, width) for _ in range(SEQUENCES)])
    assert counted.get_total_flops() == one.hessian


def test_the_solves_by_hand() -> None:
    matrices = {"q": (4, 6), "k": (2, 6), "down": (6, 10)}
    shapes = Shapes(matrices, (("q", "k"), ("down",)), attention=4, blocks=1, head=0)
    by_hand = 1 / 3 * 6**3 + (4 + 2) * 6**2 + 1 / 3 * 10**3 + 6 * 10**2
    assert Count(shapes, 1, 1).solve("sparsegpt") == pytest.approx(by_hand)
    product = 2 * ((4 + 2) * 6**2 + 6 * 10**2)
    by_hand = ALPS_PENALTIES * (6**3 + 10**3) + (1 + ALPS_REFINEMENT) * product
    assert Count(shapes, 1, 1).solve("alps") == pytest.approx(by_hand)
    assert Count(shapes, 1, 1).fit == ALPS_ITERATIONS * product


def test_the_solve_of_alps_is_what_torch_counts() -> None:
    """All but its Cholesky factors and inverses, which torch does not count."""
    width, rows = 16, 8
    weight, inputs = torch.randn(rows, width), torch.randn(64, width)
    statistics = Statistics({Need.HESSIAN: inputs.T @ inputs}, 1, 64)
    with FlopCounterMode(display=False) as counted:
        params = ALPSParams(iterations=9, refinement=4)
        alps([weight], statistics, NofM(2, 4), params)
    product = 2 * rows * width**2
    products = counted.get_total_flops() // product
    assert counted.get_total_flops() == products * product
    assert 1 + 3 + 1 + 4 <= products <= 1 + 9 + 1 + 4  # stops when the mask settles


def test_a_token_attends_to_itself_and_those_before(shapes: Shapes) -> None:
    pairs = sum(range(1, LENGTH + 1))
    assert Count(shapes, 1, LENGTH).attention == 4 * shapes.attention * pairs


@pytest.mark.parametrize(
    ("method", "target", "all_blocks", "all_but_one", "cut_short"),
    [
        ("wanda", None, 1, 1, "all"),
        ("sparsegpt", None, 1, 1, "all"),
        ("alps", None, 1, 1, "all"),
        ("gblm", None, 3, 1, "all"),
        ("wanda++-rgs", None, 1, 1, "none"),
        ("wanda++", "block", 1, 1, "none"),
        ("wanda++-ro", "block", 1, 1, "none"),
        ("wanda++", "model", 1, 2, "none"),
        ("wanda++-ro", "model", 1, 2, "all but one"),
        ("alps-ro", "model", 1, 2, "all but one"),
    ],
)
def test_forward_passes(
    method: str,
    target: str | None,
    all_blocks: int,
    all_but_one: int,
    cut_short: str,
    shapes: Shapes,
) -> None:
    """Passes through all blocks, and all but one; which are observed without their last matrix."""
    regional = {"rounds": 2, "samples": 8, "judges": 0, "target": target, "weigh": "plain"}
    parts = count(method, shapes, SEQUENCES, LENGTH, regional=regional)
    one, blocks = Count(shapes, SEQUENCES, LENGTH), shapes.blocks
    forward = (all_blocks * blocks + all_but_one * (blocks - 1)) * one.forward
    cut = {"all": blocks, "all but one": blocks - 1, "none": 0}[cut_short] * one.last
    head = shapes.head * SEQUENCES * LENGTH if method == "gblm" else 0
    counted = sum(parts.get(name, 0.0) for name in ("observe", "aim", "propagate", "forward"))
    assert counted == pytest.approx(forward - cut + head)
    assert sum(by_phase(parts).values()) == pytest.approx(sum(parts.values()))


def test_magnitude_needs_nothing(shapes: Shapes) -> None:
    assert count("magnitude", shapes, SEQUENCES, LENGTH) == {}


def test_judges_run_before_the_first_round_and_after_each(shapes: Shapes, one: Count) -> None:
    plain = {"rounds": 2, "samples": 100, "judges": 0, "target": "model", "weigh": "plain"}
    without = count("wanda++-ro", shapes, 8, LENGTH, None, plain, causal=False)
    judged = count("wanda++-ro", shapes, 8, LENGTH, None, {**plain, "judges": 16}, causal=False)
    each = one.forward / SEQUENCES
    step = each + (one.linear + one.to_inputs + 2 * one.attention) / SEQUENCES
    # two of eight judge, three times; they are stepped on no longer
    by_hand = shapes.blocks * (3 * 2 * each - 2 * 2 * step)
    assert judged["optimise"] - without["optimise"] == pytest.approx(by_hand)


def test_one_pass_fewer_matrix_by_matrix(shapes: Shapes) -> None:
    whole = Count(shapes, SEQUENCES, LENGTH).forward * shapes.blocks
    assert count("wanda", shapes, SEQUENCES, LENGTH, "matrix") == {"observe": whole}


def test_the_optimiser_draws_no_more_than_there_is(shapes: Shapes, one: Count) -> None:
    settings = {"rounds": 2, "samples": 100, "judges": 0, "target": "block", "weigh": "plain"}
    parts = count("wanda++-ro", shapes, SEQUENCES, LENGTH, None, settings, causal=False)
    per_sequence = (one.forward + one.linear + one.to_inputs + 2 * one.attention) / SEQUENCES
    assert parts["optimise"] == pytest.approx(shapes.blocks * 2 * SEQUENCES * per_sequence)
