"""The contract that every method passes, and the oracle of each score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.errors import RecipeError
from secateur.methods import every, get
from secateur.sparsity import Competition, Pattern, audit, keep_mask, parse_pattern
from secateur.statistics import Need, Statistics

OUT, IN = 12, 32


@dataclass(frozen=True)
class Case:
    """A method and the parameters to run it with."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.parameters.items())])


CONTRACT = [
    Case("magnitude"),
    Case("magnitude", {"competition": "row"}),
    Case("wanda"),
    Case("wanda", {"competition": "layer"}),
    Case("wanda", {"variant": True}),
    Case("wanda++-rgs"),
    Case("wanda++-rgs", {"alpha": 0}),
    Case("wanda++-ro"),
    Case("wanda++"),
    Case("sparsegpt"),
    Case("sparsegpt", {"competition": "row"}),
    Case("sparsegpt", {"block_size": 8}),
    Case("alps"),
    Case("alps", {"competition": "layer"}),
    Case("alps", {"iterations": 1, "refinement": 0}),
    Case("alps-ro"),
    Case("gblm"),
    Case("gblm", {"aggregate": "l1", "alpha": 1}),
    Case("gblm", {"gradient_only": True}),
]
PATTERNS = ["2:4", "4:8", "1:4", "50%", "30%", "75%"]


def statistics_of(method: Any, generator: torch.Generator, dead: Iterable[int] = ()) -> Any:
    """Random statistics for one matrix; inputs in `dead` were never anything but zero."""
    norm = torch.rand(IN, generator=generator) + 0.1
    inputs = torch.randn(64, IN, generator=generator)
    gradient = torch.rand(OUT, IN, generator=generator)
    norm[list(dead)], inputs[:, list(dead)], gradient[:, list(dead)] = 0, 0, 0
    everything = {
        Need.INPUT_NORM: norm,
        Need.HESSIAN: inputs.T @ inputs,
        Need.REGIONAL_GRADIENT: gradient,
        Need.FULL_GRADIENT: gradient,
    }
    return Statistics({need: everything[need] for need in method.needs}, sequences=4)


def prune(case: Any, pattern: Pattern, weight: Tensor, statistics: Any) -> Any:
    """(keep, new weight) of a case, the way the sweep goes about it."""
    method: Any = get(case.name)
    params = method.params(**case.parameters)
    if method.solve is not None:
        solution = method.solve([weight], statistics, pattern, params)
        return solution.keep[0], solution.weights[0]
    keep = keep_mask(method.score(weight, statistics, params), pattern, params.chosen_competition)
    return keep, weight * keep


def applies(case: Any, pattern: Pattern) -> Any:
    return get(case.name).params(**case.parameters).objection(pattern) is None


TABLE = [
    pytest.param(case, text, id=f"{case} {text}")
    for case in CONTRACT
    for text in PATTERNS
    if applies(case, parse_pattern(text))
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_every_method_is_in_the_contract_table() -> None:
    assert {case.name for case in CONTRACT} == {method.name for method in every()}


@pytest.mark.parametrize(("case", "text"), TABLE)
class TestContract:
    def test_counts_are_exact(self, case: Any, text: str, generator: torch.Generator) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        weight = torch.randn(OUT, IN, generator=generator)
        keep, pruned = prune(case, pattern, weight, statistics_of(method, generator))
        assert audit(pruned, pattern).holds
        per_row = (
            method.params(**case.parameters).chosen_competition is Competition.ROW or ":" in text
        )
        if per_row:
            wanted = IN - int(pattern.sparsity * IN + 1e-6)
            assert set(keep.sum(1).tolist()) == {wanted}
        else:
            assert int((~keep).sum()) == int(pattern.sparsity * OUT * IN + 1e-6)

    def test_ties_do_not_change_the_count(
        self, case: Any, text: str, generator: torch.Generator
    ) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        values = {need: torch.ones(IN) for need in (Need.INPUT_NORM,)}
        values[Need.HESSIAN] = torch.eye(IN)
        values[Need.REGIONAL_GRADIENT] = values[Need.FULL_GRADIENT] = torch.ones(OUT, IN)
        statistics = Statistics({need: values[need] for need in method.needs}, 4)
        keep, _ = prune(case, pattern, torch.ones(OUT, IN), statistics)
        assert int((~keep).sum()) == OUT * int(pattern.sparsity * IN + 1e-6) or (
            int((~keep).sum()) == int(pattern.sparsity * OUT * IN + 1e-6)
        )

    def test_dead_inputs_are_harmless_and_go_first(
        self, case: Any, text: str, generator: torch.Generator
    ) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        weight = torch.randn(OUT, IN, generator=generator)
        dead = [0, 5, 17]
        keep, pruned = prune(case, pattern, weight, statistics_of(method, generator, dead))
        assert torch.isfinite(pruned).all()
        assert audit(pruned, pattern).holds
        if method.needs and parse_pattern(text).sparsity >= 0.5:
            assert not keep[:, dead].any()

    def test_an_all_zero_matrix_and_silent_data_are_harmless(
        self, case: Any, text: str, generator: torch.Generator
    ) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        silent = statistics_of(method, generator, range(IN))
        keep, pruned = prune(case, pattern, torch.zeros(OUT, IN), silent)
        assert torch.isfinite(pruned).all()
        assert int((~keep).sum()) >= OUT * int(pattern.sparsity * IN + 1e-6)

    def test_shape_and_precision_are_kept_and_inputs_untouched(
        self, case: Any, text: str, generator: torch.Generator
    ) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        weight = torch.randn(OUT, IN, generator=generator)
        before = weight.clone()
        keep, pruned = prune(case, pattern, weight, statistics_of(method, generator))
        assert keep.shape == pruned.shape == weight.shape
        assert pruned.dtype == weight.dtype
        assert keep.dtype == torch.bool
        assert torch.equal(weight, before)

    def test_kept_weights_change_only_where_the_method_solves(
        self, case: Any, text: str, generator: torch.Generator
    ) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        weight = torch.randn(OUT, IN, generator=generator)
        keep, pruned = prune(case, pattern, weight, statistics_of(method, generator))
        assert torch.equal(pruned[~keep], torch.zeros(int((~keep).sum())))
        assert torch.equal(pruned[keep], weight[keep]) is (method.solve is None)

    def test_same_input_same_bits(self, case: Any, text: str, generator: torch.Generator) -> None:
        pattern, method = parse_pattern(text), get(case.name)
        weight = torch.randn(OUT, IN, generator=generator)
        statistics = statistics_of(method, generator)
        first, second = (prune(case, pattern, weight, statistics) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("text", ["2:4", "4:8", "50%"])
def test_wanda_equals_a_few_plain_lines(text: str, generator: torch.Generator) -> None:
    """Independent of keep_mask: argsort per group, as anyone would write it from the paper."""
    weight = torch.randn(OUT, IN, generator=generator)
    inputs = torch.randn(100, IN, generator=generator)
    metric = weight.abs() * inputs.norm(dim=0)
    group = int(text[2]) if ":" in text else IN
    pruned = group // 2
    blocks = metric.reshape(-1, group)
    order = blocks.argsort(dim=1)
    expected = torch.ones_like(blocks, dtype=torch.bool)
    expected.scatter_(1, order[:, :pruned], False)
    statistics = Statistics({Need.INPUT_NORM: inputs.norm(dim=0)}, 1)
    keep, _ = prune(Case("wanda"), parse_pattern(text), weight, statistics)
    assert torch.equal(keep, expected.view(OUT, IN))


@pytest.mark.parametrize("text", PATTERNS)
def test_without_its_gradient_rgs_is_wanda_bit_for_bit(
    text: str, generator: torch.Generator
) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    statistics = statistics_of(get("wanda++-rgs"), generator)
    wanda: Any = get("wanda")
    rgs: Any = get("wanda++-rgs")
    without = rgs.score(weight, statistics, rgs.params(alpha=0))
    assert torch.equal(wanda.score(weight, statistics, wanda.params()), without)


def test_rgs_score_by_hand(generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    statistics = statistics_of(get("wanda++-rgs"), generator)
    method: Any = get("wanda++")
    score = method.score(weight, statistics, method.params(alpha=3))
    i, j = 4, 9
    balance = 3 * math.sqrt(statistics.sequences / 128)  # 3 at the paper's number
    by_hand = abs(weight[i, j]) * (
        balance * statistics.regional_gradient[i, j] + statistics.input_norm[j]
    )
    torch.testing.assert_close(score[i, j], by_hand)


@pytest.mark.parametrize("aggregate", ["l2", "l1"])
def test_gblm_score_at_the_papers_size_is_the_published_one(
    generator: torch.Generator, aggregate: str
) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    gradient, norm = torch.rand(OUT, IN, generator=generator), torch.rand(IN, generator=generator)
    values = {Need.FULL_GRADIENT: gradient, Need.INPUT_NORM: norm}
    method: Any = get("gblm")
    score = method.score(
        weight, Statistics(values, 128, 2048), method.params(alpha=7, aggregate=aggregate)
    )
    published = weight.abs() * (7 * gradient + norm / math.sqrt(128))
    torch.testing.assert_close(score, math.sqrt(128) * published)


@pytest.mark.parametrize(
    ("name", "need", "parameters"),
    [
        ("wanda++-rgs", Need.REGIONAL_GRADIENT, {}),
        ("gblm", Need.FULL_GRADIENT, {}),
        ("gblm", Need.FULL_GRADIENT, {"aggregate": "l1"}),
    ],
)
def test_masks_do_not_depend_on_how_often_a_sequence_is_there(
    name: str, need: Need, parameters: dict[str, Any], generator: torch.Generator
) -> None:
    """Every sequence four times: norms double, a mean over them stays, a sum grows with them."""
    weight = torch.randn(OUT, IN, generator=generator)
    gradient, norm = torch.rand(OUT, IN, generator=generator), torch.rand(IN, generator=generator)
    repeated = {"wanda++-rgs": 1, "gblm": 4 if parameters else 2}[name] * gradient
    once = Statistics({need: gradient, Need.INPUT_NORM: norm}, 8, 64)
    often = Statistics({need: repeated, Need.INPUT_NORM: 2 * norm}, 32, 64)
    params = get(name).params(**parameters)
    score: Any = get(name).score
    torch.testing.assert_close(score(weight, often, params), 2 * score(weight, once, params))


def test_the_gradient_of_a_mean_over_tokens_counts_by_their_number(
    generator: torch.Generator,
) -> None:
    """GBLM's gradient is of a mean over tokens, the norm of a sum: of 4 times as many tokens, whose
    gradients are independent, half as large beside twice as large."""
    weight = torch.randn(OUT, IN, generator=generator)
    gradient, norm = torch.rand(OUT, IN, generator=generator), torch.rand(IN, generator=generator)
    short = Statistics({Need.FULL_GRADIENT: gradient, Need.INPUT_NORM: norm}, 8, 64)
    long = Statistics({Need.FULL_GRADIENT: gradient / 2, Need.INPUT_NORM: 2 * norm}, 8, 256)
    method: Any = get("gblm")
    torch.testing.assert_close(
        method.score(weight, long, method.params()),
        2 * method.score(weight, short, method.params()),
    )


def test_the_variant_prunes_rows_to_the_same_lost_share(generator: torch.Generator) -> None:
    """As the paper's bisection does: a row loses its least weights up to one share of its sum."""
    weight = torch.randn(40, IN, generator=generator) ** 3  # rows that differ in concentration
    statistics = Statistics({Need.INPUT_NORM: torch.ones(IN)}, 1)
    keep, _ = prune(Case("wanda", {"variant": True}), parse_pattern("50%"), weight, statistics)
    assert int((~keep).sum()) == 40 * IN // 2
    assert len(set((~keep).sum(1).tolist())) > 1  # the ratio differs from row to row
    metric = weight.abs()
    lost = (metric * ~keep).sum(1) / metric.sum(1)  # [out]
    with_next = torch.stack(
        [(row * ~k).sum() + row[k].min() for row, k in zip(metric, keep, strict=True)]
    ) / metric.sum(1)
    assert lost.max() <= with_next.min()  # one threshold divides all rows
    for row, kept in zip(metric, keep, strict=True):
        assert row[kept].min() >= row[~kept].max()  # each row loses its least


def test_an_unknown_method_is_told_its_neighbours() -> None:
    with pytest.raises(RecipeError, match=r"unknown method 'wnada'.*did you mean 'wanda'"):
        get("wnada")


def test_every_method_describes_itself() -> None:
    for method in every():
        facts = method.describe()
        assert facts["summary"]
        assert facts["paper"].startswith("https://arxiv.org/abs/")
        for default, meaning in facts["parameters"].values():
            assert default
            assert meaning
