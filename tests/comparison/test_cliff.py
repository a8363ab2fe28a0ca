"""The curve of damage by share removed: against brute force, against `prune`, and its knee."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import AutoModelForCausalLM

import secateur
import tiny
from secateur.blocks.stream import Stream
from secateur.checkpoint import open_model
from secateur.comparison.cliff import Cliff, plan_cliff
from secateur.comparison.knee import knee_of
from secateur.comparison.units import MEASURED
from secateur.errors import SecateurError
from secateur.pruning.removal import by_leaving_out
from secateur.reporting.cliff_figure import cliff_as_text, cliff_table
from secateur.sparsity import Structures, parse_pattern
from tiny import Command, make_model, make_tokens

DEPTH = 6
SHORT: dict[str, Any] = {"samples": 4, "sequence_length": 32}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of six blocks that differ in what they do."""
    model = make_model("llama", num_hidden_layers=DEPTH)
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            for parameter in block.parameters():
                parameter.mul_((1.2, 0.5, 1.0, 0.7, 0.9, 1.1)[index])
    return tiny.save(model, tmp_path_factory.mktemp("dense") / "llama")


@pytest.fixture(scope="module")
def heldout() -> Tensor:
    return make_tokens(7, 32, seed=5)


def saved(tokens: Tensor, folder: Path) -> str:
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    return str(folder / "tokens.safetensors")


@pytest.fixture(scope="module")
def text(heldout: Tensor, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(heldout, tmp_path_factory.mktemp("heldout"))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(make_tokens(), tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def curve(dense: Path, text: str, calibration: str) -> Cliff:
    return secateur.cliff(
        dense, text=text, calibration=calibration, shares=[1, "50%", 4], batch_size=3, **SHORT
    )


@torch.no_grad()
def predictions(folder: Path, tokens: Tensor, gone: set[int]) -> Tensor:
    """Log-probabilities by transformers alone, its blocks taken out of their list by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kept = [block for index, block in enumerate(model.model.layers) if index not in gone]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return F.log_softmax(model(tokens, use_cache=False).logits[:, :-1].double(), dim=-1)


def loss_by_window(scores: Tensor, tokens: Tensor) -> Tensor:
    return -scores.gather(2, tokens[:, 1:, None])[..., 0].mean(1)


def error_of(values: Tensor) -> float:
    return float(values.std(correction=1)) / math.sqrt(len(values))


def test_every_point_is_the_model_with_its_blocks_deleted(
    curve: Cliff, dense: Path, heldout: Tensor
) -> None:
    whole = predictions(dense, heldout, set())
    before = loss_by_window(whole, heldout)
    assert curve.dense_perplexity == pytest.approx(math.exp(before.mean()), rel=1e-5)
    assert [point.removed for point in curve.points] == [1, 3, 4]
    for point in curve.points:
        assert len({*point.gone}) == len(point.gone) == point.removed
        scores = predictions(dense, heldout, {*point.gone})
        losses = loss_by_window(scores, heldout)
        apart = (whole.exp() * (whole - scores)).sum(-1).mean(1)
        assert point.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-5)
        assert point.standard_error == pytest.approx(
            math.exp(losses.mean()) * error_of(losses), rel=1e-4
        )
        assert point.divergence == pytest.approx(float(apart.mean()), rel=1e-4)
        assert point.divergence_error == pytest.approx(error_of(apart), rel=1e-3)
        above = losses - before
        assert point.loss_above_dense == pytest.approx(float(above.mean()), abs=1e-5)
        assert point.loss_above_dense_error == pytest.approx(error_of(above), rel=1e-3)
        assert point.damage == pytest.approx(point.perplexity / curve.dense_perplexity - 1)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("shortgpt", {}),
        ("shortgpt", {"contiguous": True}),
        ("shortened-llama", {}),
        ("greedy", {}),
        ("greedy", {"contiguous": True}),
        ("magnitude", {}),
    ],
)
def test_a_point_is_what_prune_reports(
    method: str, parameters: dict[str, Any], dense: Path, text: str, calibration: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    options = {"text": text, "calibration": calibration, "parameters": parameters, **SHORT}
    curve = secateur.cliff(dense, method=method, shares="1,3", **options)
    for point in curve.points:
        run = secateur.prune(
            dense, method=method, pattern=f"blocks-{point.removed}",
            out=tmp_path / str(point.removed), **options
        )  # fmt: skip
        (removed,), (measured,) = run.removed, run.evaluations
        assert point.gone == removed.removed
        assert point.perplexity == pytest.approx(measured.perplexity, rel=1e-6)
        assert point.standard_error == pytest.approx(measured.standard_error, rel=1e-5)
        assert point.divergence == pytest.approx(measured.divergence, rel=1e-5)
        assert curve.dense_perplexity == pytest.approx(measured.dense_perplexity, rel=1e-6)
        assert curve.heldout == measured.protocol


def test_what_models_have_in_common_is_run_once(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_model(dense, torch.device("cpu"), torch.float32)
    below = Stream(source, make_tokens(2, 8), 2)
    ran: list[int] = []
    advance = Stream.advance

    def counted(self: Stream, block: torch.nn.Module, index: int, *more: Any) -> None:
        ran.append(index)
        advance(self, block, index, *more)

    monkeypatch.setattr(Stream, "advance", counted)
    start = [hidden.clone() for hidden in below.hidden]
    streams = by_leaving_out(source, below, [(), (3,), (4, 3), (3, 5)], lambda *told: None)
    assert ran == [0, 1, 2, 3, 4, 4, 5, 5, 5]  # (3,) and (3, 5) part at the last block only
    assert all(map(torch.equal, below.hidden, start))
    ran.clear()
    (alone,) = by_leaving_out(source, below, [(3, 4)], lambda *told: None)
    assert ran == [0, 1, 2, 5]
    assert all(map(torch.equal, alone.hidden, streams[2].hidden))


# --- shares ---


def test_shares_follow_from_the_model(dense: Path, text: str) -> None:
    plan = plan_cliff({"model": str(dense), "text": text, "method": "magnitude", **SHORT})
    assert plan.counts == (1, 2, 3)
    asked = {"shares": "17%,1,50%,3"}  # two ways to say one, and two to say three
    plan = plan_cliff({"model": str(dense), "text": text, "method": "magnitude", **SHORT, **asked})
    assert plan.counts == (1, 3)


def test_every_unit_is_one_of_the_patterns() -> None:
    for name in MEASURED:
        pattern = parse_pattern(f"{name}-1")
        assert isinstance(pattern, Structures)
        assert pattern.unit == name


# --- the knee ---


def of_two_windows(*damage: float) -> Tensor:
    """The same curve in two windows."""
    return torch.tensor(damage, dtype=torch.float64)[:, None].repeat(1, 2)


@pytest.mark.parametrize(
    ("removed", "damage", "index"),
    [
        ((1, 2, 3, 4), (0.1, 0.2, 0.3, 2.0), 2),
        ((1, 2, 3, 4), (0.1, 1.0, 2.0, 3.0), 0),
        ((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), None),  # on the chord
        ((1, 2, 3, 4), (2.0, 3.0, 3.5, 4.0), None),  # above it
        ((1, 4, 8), (-0.1, 0.4, 2.0), 1),  # the first costs less than nothing
        ((1, 2), (-0.1, -0.2), None),  # no damage
        ((3,), (0.5,), None),
    ],
)
def test_the_knee_lies_furthest_below_the_chord(
    removed: tuple[int, ...], damage: tuple[float, ...], index: int | None
) -> None:
    assert knee_of(removed, of_two_windows(*damage)) == (index, 1.0)


def test_the_knee_is_as_sure_as_the_windows_agree() -> None:
    early, late = [0.1, 1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 3.0]
    agreed = torch.tensor([late] * 8, dtype=torch.float64).T
    assert knee_of((1, 2, 3, 4), agreed) == (2, 1.0)
    split = torch.tensor([early] * 4 + [late] * 4, dtype=torch.float64).T
    knee, agreement = knee_of((1, 2, 3, 4), split)
    assert knee in (0, 2)
    assert agreement is not None
    assert 0.3 < agreement < 0.9
    assert knee_of((1, 2, 3, 4), agreed[:, :1]) == (2, None)


# --- what is printed and written ---


def test_the_table_names_what_goes_beyond_the_row_above(curve: Cliff) -> None:
    points = tuple(
        point.model_copy(update={"removed": len(gone), "gone": gone})
        for point, gone in zip(curve.points, [(4,), (4, 2, 1), (1, 2, 3, 5)], strict=True)
    )
    heads, rows = cliff_table(curve.model_copy(update={"points": points}))
    assert heads[-1] == "blocks"
    assert [row[-1] for row in rows] == ["", "4", "+ 1-2", "1-3, 5"]
    assert rows[2][0] == "3 of 6, 50.0%"
    assert rows[0][1].startswith(f"{curve.dense_perplexity:.2f} ± ")


def test_the_curve_in_letters(curve: Cliff) -> None:
    values = [(1, 0.0, 0.0), (2, 0.5, 0.0), (4, 4.0, 1.0)]
    points = tuple(
        point.model_copy(update={"removed": removed, "loss_above_dense": value,
                                 "loss_above_dense_error": error})
        for point, (removed, value, error) in zip(curve.points, values, strict=True)
    )  # fmt: skip
    drawn = cliff_as_text(curve.model_copy(update={"points": points, "knee": 2}))
    plot = [line[10:] for line in drawn[1:-2]]
    marks = {(row, column): letter for row, line in enumerate(plot)
             for column, letter in enumerate(line) if letter in "oK"}  # fmt: skip
    lowest = len(plot) - 1
    high = next(row for row, column in marks if column == 59)
    assert marks == {(lowest, 0): "o", (lowest, 15): "o", (lowest - 1, 30): "K", (high, 59): "o"}
    assert high == round(lowest / 5)  # 4 on a scale to 5
    assert [line[59:] for line in plot[: high + 1]] == ["|"] * high + ["o"]
    assert drawn[-1].split() == ["0", "1", "2", "4"]
    assert all(line.isascii() for line in drawn)


@pytest.fixture
def cliff(
    command: Command, dense: Path, text: str, calibration: str
) -> Callable[..., tiny.Outcome]:
    """`cliff(*options)`: the command on the tiny model."""

    def call(*more: object, model: object = dense) -> tiny.Outcome:
        words = ["--text", text, "--calibration", calibration, "--samples", 4]
        return command("cliff", model, *words, "--sequence-length", 32, *more)

    return call


def test_the_command_prints_and_writes(cliff: Callable[..., tiny.Outcome], tmp_path: Path) -> None:
    out = tmp_path / "new" / "curve.json"
    done = cliff("--shares", "1,3,5", "--out", out)
    assert done.status == 0
    assert "1 of 6, 16.7%" in done.out
    assert "nee" in done.out
    assert f"written to {out}" in done.out
    measured = Cliff.model_validate_json(out.read_bytes())
    assert [point.removed for point in measured.points] == [1, 3, 5]
    assert [*measured.settings["shares"]] == ["1", "3", "5"]
    again = cliff("--shares", "1,3,5", "--json")
    told = json.loads(again.out)
    assert told["points"] == json.loads(out.read_text())["points"]
    refused = cliff("--out", out)
    assert (refused.status, "the file exists" in refused.err) == (2, True)
    assert list(out.parent.iterdir()) == [out]


def test_the_curve_is_drawn_and_listed(
    dense: Path, text: str, calibration: str, tmp_path: Path
) -> None:
    options = {"text": text, "calibration": calibration, "shares": "1,2,5", **SHORT}
    files = {ending: tmp_path / f"curve.{ending}" for ending in ("svg", "html", "csv")}
    for file in files.values():
        measured = secateur.cliff(dense, out=file, **options)
    drawing = ElementTree.parse(files["svg"]).getroot()
    name = "{http://www.w3.org/2000/svg}"
    paths = [path.get("class") for path in drawing.iter(f"{name}path")]
    assert (paths.count("mark c2"), paths.count("whisker c2"), paths.count("curve c2")) == (4, 3, 1)
    page = files["html"].read_text()
    assert page.count("<svg") == 2
    assert "5 of 6, 83.3%" in page
    assert "<script" not in page
    lines = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [int(line["removed"]) for line in lines] == [0, 1, 2, 5]
    assert [float(line["loss_above_dense_nats"]) for line in lines[1:]] == [
        point.loss_above_dense for point in measured.points
    ]
    assert [line["knee"] for line in lines].count("1") == (measured.knee is not None)


def test_a_dry_run_measures_nothing(
    cliff: Callable[..., tiny.Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "secateur.comparison.cliff.by_window", lambda *args: pytest.fail("measured")
    )
    done = cliff("--dry-run", "--out", tmp_path / "c.svg")
    assert done.status == 0
    assert "removed                1, 2, 3 of 6 blocks" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "wanda"], "--method wanda removes no blocks, wanted one of greedy"),
        (["--pattern", "2:4"], "--pattern 2:4, wanted the name of what is removed alone: blocks"),
        (["--pattern", "blocks-2"], "--pattern blocks-2, wanted the name of what is removed"),
        (["--shares", "10%"], "blocks-10% removes 0 of 6 blocks"),
        (["--shares", "6"], "blocks-6 removes 6 of 6 blocks"),
        (["--shares", "1,0"], "--shares 0, wanted a share such as 10%"),
        (["--shares", "100%"], "--shares 100%, wanted a share such as 10%"),
        (["--shares", "much"], "--shares much, wanted a share such as 10%"),
        (["--shares", ","], "wanted some, such as 10%,20%,30%"),
        (["--out", "curve.pdf"], "--out curve.pdf, wanted a name in .html, .svg, .json, .csv"),
        (["--set", "alpha=1"], "alpha"),
        (["--windows", "0"], "--windows 0, wanted at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str], told: str, cliff: Callable[..., tiny.Outcome],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused = cliff(*words)
    assert refused.status == 2
    assert told in refused.err
    assert refused.err.count("\n") == 1
    assert (refused.out, list(tmp_path.iterdir())) == ("", [])


def test_a_model_of_one_block_has_nothing_to_lose(
    cliff: Callable[..., tiny.Outcome], tmp_path: Path
) -> None:
    folder = tiny.save(make_model("llama", num_hidden_layers=1), tmp_path / "one")
    for words in ([], ["--shares", "1"]):
        refused = cliff(*words, model=folder)
        assert refused.status == 2
        assert "of 1 blocks; wanted a model with more of them" in refused.err
        assert refused.err.count("\n") == 1


def test_a_search_needs_calibration(dense: Path, text: str) -> None:
    with pytest.raises(SecateurError, match="method shortgpt needs calibration text"):
        secateur.cliff(dense, text=text, **SHORT)
    with pytest.raises(SecateurError, match="unknown key 'mend'"):
        secateur.cliff(dense, text=text, method="magnitude", mend=True, **SHORT)


def test_a_model_that_no_configuration_can_hold_is_refused(
    tmp_path: Path, text: str, calibration: str
) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = make_model("gemma4", num_hidden_layers=4, layer_types=types)
    with torch.no_grad():
        for parameter in model.model.layers[3].parameters():
            parameter.mul_(1e-3)  # so that it goes first
    folder = tiny.save(model, tmp_path / "gemma")
    with pytest.raises(SecateurError, match="block") as refused:
        secateur.cliff(folder, text=text, method="magnitude", shares="1", **SHORT)
    assert "\n" not in str(refused.value)
