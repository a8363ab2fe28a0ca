"""The curve of damage where every block loses some of its width, against what `prune` reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import secateur
from secateur.comparison.cliff import Cliff, plan_cliff
from secateur.comparison.units import MEASURED
from secateur.errors import SecateurError
from secateur.methods import every_remover
from tiny import Command, make_tokens

SHORT: dict[str, Any] = {"samples": 4, "sequence_length": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4},
    "mixtral": {"num_local_experts": 6},
    "deepseek_v3": {"num_experts": 8, "n_routed_experts": 8, "topk_group": 1},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("heldout") / "tokens.safetensors"
    save_file({"input_ids": make_tokens(5, 32, seed=5)}, path)
    return str(path)


def changes_of(family: str) -> dict[str, Any]:
    """Settings for enough of everything."""
    return MODELS[family]


@pytest.fixture
def options(text: str, calibration: str) -> dict[str, Any]:
    return {"text": text, "calibration": calibration, **SHORT}


@pytest.mark.parametrize(
    ("family", "unit", "method", "shares"),
    [
        *(("llama", "ffn", one.name, "6,50%") for one in every_remover("ffn")),
        ("llama", "heads", "activation", "4,6"),
        ("llama", "heads", "ziplm", "4,6"),
        *(("mixtral", "experts", one.name, "1,3") for one in every_remover("experts")),
        ("deepseek_v3", "experts", "reap", "2,50%"),  # of two groups, behind a block without any
        ("deepseek_v3", "experts", "replacement", "2,50%"),
    ],
)
def test_a_point_is_what_prune_reports(
    family: str, unit: str, method: str, shares: str, folder_of: Callable[[str], Path],
    options: dict[str, Any], tmp_path: Path,
) -> None:  # fmt: skip
    model = folder_of(family)
    curve = secateur.cliff(model, pattern=unit, method=method, shares=shares, **options)
    assert len(curve.points) == 2
    for point in curve.points:
        run = secateur.prune(
            model, method=method, pattern=f"{unit}-{point.removed}",
            out=tmp_path / str(point.removed), **options
        )  # fmt: skip
        (lost,), (measured,) = run.lost, run.evaluations
        assert (point.removed, curve.of, point.gone) == (lost.lost, lost.of, lost.removed)
        assert point.perplexity == pytest.approx(measured.perplexity, rel=1e-6)
        assert point.standard_error == pytest.approx(measured.standard_error, rel=1e-5)
        assert point.divergence == pytest.approx(measured.divergence, rel=1e-5)
        assert curve.dense_perplexity == pytest.approx(measured.dense_perplexity, rel=1e-6)
        assert curve.heldout == measured.protocol


@pytest.mark.parametrize(
    ("family", "unit", "counts"),
    [
        ("llama", "ffn", (6, 12, 19, 25, 32)),  # of 64: no multiple of 64 leaves any
        ("llama", "heads", (4,)),  # the family takes no five, six or seven
        ("mixtral", "experts", (1, 2, 3)),
        ("deepseek_v3", "experts", (2, 4)),  # as many of each of two groups
    ],
)
def test_shares_and_the_method_follow_from_what_is_removed(
    family: str, unit: str, counts: tuple[int, ...], folder_of: Callable[[str], Path],
    options: dict[str, Any],
) -> None:  # fmt: skip
    plan = plan_cliff({"model": str(folder_of(family)), "pattern": unit, **options})
    assert plan.counts == counts
    assert plan.prepared.recipe.method == MEASURED[unit].method


def test_a_share_may_be_a_fraction(
    folder_of: Callable[[str], Path], options: dict[str, Any]
) -> None:
    asked = {"pattern": "experts", "shares": [0.5, 1 / 3, "0.17"], **options}
    assert plan_cliff({"model": str(folder_of("mixtral")), **asked}).counts == (1, 2, 3)


def test_one_window_has_no_error_bar(
    command: Command, folder_of: Callable[[str], Path], options: dict[str, Any], tmp_path: Path
) -> None:
    words = ["--text", options["text"], "--calibration", options["calibration"], "--samples", 4]
    words += ["--sequence-length", 32, "--pattern", "experts", "--windows", 1, "--shares", "1,3"]
    files = [tmp_path / f"curve.{ending}" for ending in ("json", "csv", "html", "svg")]
    for out in files:
        done = command("cliff", folder_of("mixtral"), *words, "--out", out)
        assert done.status == 0, done.err
        assert "±" not in done.out
        assert "1 window of 32 tokens" in done.out
        assert "One window has no standard error" in done.out
    measured = Cliff.model_validate_json(files[0].read_text())
    assert measured.dense_standard_error is None
    assert {point.loss_above_dense_error for point in measured.points} == {None}
    assert measured.model_dump(mode="json") == json.loads(files[0].read_text())
    assert files[1].read_text().splitlines()[1].startswith("0,6,experts,,")
    assert 'class="whisker' not in files[3].read_text()


def test_what_is_removed_is_told_in_full(
    command: Command, folder_of: Callable[[str], Path], options: dict[str, Any]
) -> None:
    words = ["--text", options["text"], "--calibration", options["calibration"], "--samples", 4]
    words += ["--sequence-length", 32, "--shares", "4,6"]
    done = command("cliff", folder_of("llama"), *words, "--pattern", "heads")
    assert "8 groups of attention heads of every block, by activation" in done.out
    assert "4 left in every block" in done.out


@pytest.mark.parametrize(
    ("family", "asked", "told"),
    [
        ("mixtral", {"pattern": "experts", "shares": "5"}, "leaves 1 of 6 experts, and 2 see each"),
        ("mixtral", {"pattern": "experts", "method": "wanda"}, "removes no experts, wanted one of"),
        ("mixtral", {"pattern": "ffn"}, "feed-forward channels cannot be removed"),
        ("deepseek_v3", {"pattern": "experts", "shares": "2,3"}, "which lie in 2 groups"),
        ("llama", {"pattern": "experts"}, "experts cannot be removed"),
        ("llama", {"pattern": "heads", "shares": "1"}, "not a multiple of the number"),
    ],
)
def test_what_does_not_fit_is_one_line(
    family: str, asked: dict[str, Any], told: str, folder_of: Callable[[str], Path],
    options: dict[str, Any],
) -> None:  # fmt: skip
    with pytest.raises(SecateurError) as refused:
        secateur.cliff(folder_of(family), **options, **asked)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
