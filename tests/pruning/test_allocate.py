"""Sparsity where it hurts least: the ratios, the damage that they follow, and whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name it is known by

import secateur
from secateur.blocks.stream import Stream, silent
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.errors import RecipeError
from secateur.methods.wanda import WandaParams, wanda
from secateur.pruning.allocate import Part, _parts, damages, outliers
from secateur.recipe import Recipe
from secateur.sparsity import Selection, Unstructured, keep_mask
from secateur.sparsity.allocation import MEASURED_SPREAD, OWL_SPREAD, by_damage, by_outliers
from secateur.statistics import Need, Statistics
from tiny import BLOCKS, make_model, make_tokens


def even(ratios: list[float]) -> float:
    """Parts of one size, pruned exactly."""
    return sum(ratios) / len(ratios)


def test_more_outliers_fewer_zeros_and_the_mean_is_the_target() -> None:
    ratios = by_outliers(torch.tensor([0.01, 0.03, 0.02]).double(), 0.6, even)
    assert even(ratios) == pytest.approx(0.6, abs=1e-5)
    assert ratios[0] - ratios[1] == pytest.approx(2 * OWL_SPREAD, abs=1e-5)
    assert ratios[0] > ratios[2] > ratios[1]


def test_equal_outliers_are_uniform() -> None:
    assert by_outliers(torch.ones(3).double(), 0.6, even) == pytest.approx([0.6] * 3, abs=1e-5)


def test_one_weight_more_costs_the_same_everywhere() -> None:
    """At the optimum d/dr [exp(a + b r)] / size is one number, found here by a grid instead."""
    tried = torch.tensor([0.5, 0.6, 0.7]).double()
    offset, slope = torch.tensor([-9.0, -8.0]).double(), torch.tensor([9.0, 8.5]).double()
    sizes = torch.tensor([3.0, 1.0]).double()
    damage = torch.exp(offset[:, None] + slope[:, None] * tried)

    def count(ratios: list[float]) -> float:
        return (3 * ratios[0] + ratios[1]) / 4

    first, second = by_damage(damage, tried, sizes, 0.6, count)
    assert count([first, second]) == pytest.approx(0.6, abs=1e-5)
    grid = torch.linspace(0.5, 0.7, 20001).double()
    other = 4 * 0.6 - 3 * grid
    cost = torch.exp(offset[0] + slope[0] * grid) + torch.exp(offset[1] + slope[1] * other)
    cost[(other - 0.6).abs() > MEASURED_SPREAD] = torch.inf
    assert first == pytest.approx(float(grid[cost.argmin()]), abs=2e-4)


def test_limits_hold_and_the_others_make_up_for_them() -> None:
    tried = torch.tensor([0.5, 0.6, 0.7]).double()
    damage = torch.tensor([[1e-9, 2e-9, 4e-9], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]).double()
    ratios = by_damage(damage, tried, torch.ones(3).double(), 0.6, even)
    assert ratios[0] == pytest.approx(0.6 + MEASURED_SPREAD)
    assert ratios[1] == pytest.approx(0.6 - MEASURED_SPREAD / 2, abs=1e-5)
    assert even(ratios) == pytest.approx(0.6, abs=1e-5)


def opened(family: str = "llama") -> tuple[ResidentModel, Stream, list[Part], torch.Tensor]:
    source = ResidentModel(make_model(family), torch.device("cpu"), torch.float32)
    tokens = make_tokens(4, 16)
    parts = _parts(source, Selection(Unstructured(0.5)), whole_blocks=False)
    return source, Stream(source, tokens, 3), parts, tokens


def test_damage_is_the_divergence_of_a_model_pruned_in_that_part_alone() -> None:
    source, stream, parts, tokens = opened()
    assert len(parts) == 7 * BLOCKS
    before = {name: weight.clone() for name, weight in source.model.state_dict().items()}
    found = damages(source, stream, parts, [0.3, 0.6], silent)
    for name, weight in source.model.state_dict().items():
        assert torch.equal(weight, before[name])

    model = make_model("llama")
    block = model.model.layers[1]
    norms: dict[str, torch.Tensor] = {}
    for matrix in find_matrices(block):
        matrix.owner.register_forward_hook(
            lambda m, a, o, name=matrix.name: norms.update({name: a[0].flatten(0, 1).norm(dim=0)})
        )
    with torch.no_grad():
        dense = model(tokens).logits[:, :-1].log_softmax(-1)
        for matrix in find_matrices(block):
            if matrix.name == "mlp.up_proj.weight":
                statistics = Statistics({Need.INPUT_NORM: norms[matrix.name]}, 4)
                score = wanda(matrix.read(), statistics, WandaParams())
                matrix.write(matrix.read() * keep_mask(score, Unstructured(0.6)))
        pruned = model(tokens).logits[:, :-1].log_softmax(-1)
    wanted = F.kl_div(pruned, dense, reduction="none", log_target=True).sum(-1).mean()
    [place] = [
        n for n, part in enumerate(parts) if part.block == 1 and "up_proj" in part.expression
    ]
    assert float(found[place, 1]) == pytest.approx(float(wanted), rel=1e-3)
    assert (found[:, 1] > found[:, 0]).all()


def test_outliers_are_counted_over_the_block() -> None:
    source, stream, _, _ = opened()
    [block, *_] = parts = _parts(source, Selection(Unstructured(0.5)), whole_blocks=True)
    with torch.no_grad():
        for matrix in block.matrices:
            matrix.read().fill_(0.01)
        block.matrices[0].read()[0, :3] = 100.0
    shares = outliers(source, stream, parts, silent)
    assert float(shares[0]) * block.size == pytest.approx(3, abs=1e-6)


@pytest.mark.parametrize("allocation", ["owl", "measured"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_a_run_prunes_what_was_asked_and_not_everywhere_the_same(
    family: str, allocation: str
) -> None:
    model = make_model(family)
    options: dict[str, Any] = {"samples": 4, "sequence_length": 16, "pattern": "60%"}
    run = secateur.prune(
        model, method="wanda", calibration=make_tokens(4, 16), allocation=allocation, **options
    )
    uniform = secateur.prune(
        make_model(family), method="wanda", calibration=make_tokens(4, 16), **options
    )
    assert run.sparsity == pytest.approx(uniform.sparsity, abs=0.01)
    assert run.sparsity <= uniform.sparsity
    assert len(shares(run)) > len(shares(uniform))


def shares(run: Any) -> set[float]:
    """The shares of zeros that occur among the matrices of a run."""
    return {m.zeros / (m.rows * m.columns) for block in run.blocks for m in block.matrices}


def test_what_cannot_be_shared_out_is_refused() -> None:
    base = {"model": "m", "out": "o", "method": "wanda", "calibration": "c4"}
    with pytest.raises(RecipeError, match="shares out a ratio, such as 60%, not 2:4"):
        Recipe.build({**base, "allocation": "owl"})
    with pytest.raises(RecipeError, match="allocation measured needs calibration text"):
        Recipe.build({"model": "m", "method": "magnitude", "pattern": "60%",
                      "allocation": "measured"})  # fmt: skip
