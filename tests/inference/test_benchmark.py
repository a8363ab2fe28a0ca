"""`secateur bench`: what is run, what is counted, and that a loss is called a loss."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from secateur import cli, inference
from secateur.errors import ModelError
from secateur.inference import BenchSettings, PackedLinear, benchmark, forms, summarise, tabulate
from secateur.inference.benchmark import BenchReport, Loaded, Measurement
from secateur.inference.generation import Latency, measure
from secateur.inference.tile import Tile
from tiny import BLOCKS, EVERY_FAMILY, make_model

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def pruned(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, 2:4."""
    out = tmp_path_factory.mktemp("bench") / "llama"
    secateur.prune(llama_folder, method="magnitude", pattern="2:4", out=out)
    return out


WITHOUT_CACHE = "openai-gpt"


@pytest.mark.parametrize("family", [name for name in EVERY_FAMILY if name != WITHOUT_CACHE])
def test_prompts_and_tokens_pass_as_they_should(family: str) -> None:
    model = make_model(family)
    seen: list[tuple[int, ...]] = []
    forward = model.forward

    def spy(input_ids: Tensor, **options: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids, **options)

    model.forward = spy
    prefill, decode = measure(model, batch=2, prompt=5, steps=3, repeats=2)
    assert seen == 3 * [(2, 5), (2, 1), (2, 1), (2, 1)]
    for latency in (prefill, decode):
        assert 0 < latency.lowest <= latency.seconds <= latency.highest


def test_a_family_without_a_cache_is_refused() -> None:
    with pytest.raises(ModelError, match="keeps no cache from token to token"):
        measure(make_model(WITHOUT_CACHE), batch=1, prompt=5, steps=3, repeats=1)


def test_decoding_goes_on_from_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the last step are those of the whole sequence at once."""
    model = make_model("llama")
    fed: list[Tensor] = []
    last: list[Tensor] = []
    forward = model.forward

    def spy(input_ids: Tensor, **options: Any) -> Any:
        found = forward(input_ids, **options)
        fed.append(input_ids)
        last.append(found.logits[:, -1])
        return found

    monkeypatch.setattr(model, "forward", spy)
    measure(model, batch=1, prompt=5, steps=3, repeats=1)
    with torch.no_grad():
        whole = forward(torch.cat(fed[-4:], dim=1)).logits[:, -1]
    assert torch.allclose(last[-1], whole, atol=1e-5)


def bench(model: str, **options: Any) -> BenchReport:
    return inference.bench(BenchSettings.build({"model": model, **options}))


@cpu_only
def test_without_cuda_dense_alone_is_measured(pruned: Path) -> None:
    found = bench(str(pruned), batches=(1, 3), prompt=4, new_tokens=2, repeats=2)
    assert [(m.form, m.phase, m.batch) for m in found.measurements] == [
        ("dense", phase, batch) for batch in (1, 3) for phase in ("prefill", "decode")
    ]
    assert {m.ratio for m in found.measurements} == {None}
    prefill, decode = found.measurements[2:]
    assert prefill.tokens_per_second == pytest.approx(3 * 4 / prefill.latency.seconds)
    assert decode.tokens_per_second == pytest.approx(3 / decode.latency.seconds)
    assert found.notices == (
        "dense alone is measured: a CPU gains nothing from 2:4 today",
    )  # fmt: skip
    (dense,) = found.forms
    model = make_model("llama")
    assert dense.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert dense.peak_bytes > dense.weight_bytes


@cpu_only
def test_a_dense_model_may_be_measured_dense(llama_folder: Path) -> None:
    found = bench(
        str(llama_folder), batches=(1,), prompt=4, new_tokens=1, repeats=1, forms=["dense"]
    )
    assert len(found.measurements) == 2


def test_all_matrices_take_the_form(monkeypatch: pytest.MonkeyPatch, pruned: Path) -> None:
    """Packed whether that wins or not, with the tiles that were found for every batch."""
    model = benchmark.load_whole(pruned)
    tuned: list[tuple[int, ...]] = []

    def tune(layers: list[PackedLinear], x: Tensor) -> tuple[Tile, float]:
        tuned.append(tuple(x.shape))
        return Tile(4, 8), 1.0

    monkeypatch.setattr(forms, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(benchmark, "tune", tune)
    notices: list[str] = []
    assert benchmark._prepare(model, "packed", (1, 100), notices) == 7 * BLOCKS
    assert notices == []
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    assert len(layers) == 7 * BLOCKS
    assert {tuple(layer.tiles) for layer in layers} == {(1, 64)}
    assert set(tuned) == {(1, 32), (64, 32), (1, 64), (64, 64)}


def test_a_form_that_does_not_fit_is_a_notice(pruned: Path) -> None:
    model = benchmark.load_whole(pruned)
    notices: list[str] = []
    assert benchmark._prepare(model, "semi-structured", (1,), notices) == 0
    assert notices
    assert all("stays dense" in notice for notice in notices)


def report(seconds: dict[str, float | None]) -> BenchReport:
    """What was measured, if decoding of one sequence took so long in each form."""
    found: list[Measurement] = []
    for form, taken in seconds.items():
        if taken is not None:
            both = (Latency.of([1.0]), Latency.of([taken * 0.9, taken, taken * 1.3]))
            found += benchmark._measurements(form, 1, both, 8, found)  # type: ignore[arg-type]
    loaded = [
        Loaded(form=form, sparse_matrices=0, weight_bytes=2_000_000, peak_bytes=3_000_000)
        for form in seconds
    ]
    return BenchReport(
        model="m", device="cuda:0", dtype="bfloat16", torch="2", prompt_tokens=8, new_tokens=4,
        repeats=3, forms=loaded, measurements=found, notices=("one", "two"),
    )  # fmt: skip


def test_a_loss_is_called_a_loss() -> None:
    shown = report({"dense": 0.010, "semi-structured": 0.020, "packed": 0.008, "chosen": None})
    heads, rows = tabulate(shown)
    assert len(heads) == 5
    assert [row[0] for row in rows] == ["prefill 1", "decode 1"]
    assert rows[1][1] == "10.00 ± 2.00, 100"
    assert rows[1][2].endswith("(0.50x loss)")
    assert rows[1][3].endswith("(1.25x)")
    assert rows[1][4] == "-"
    assert summarise(shown)[-2:] == ["notice: one", "notice: two"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`run("bench", folder)`: what a command that succeeds prints."""

    def command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capsys.readouterr()
        assert leave.value.code == 0, err
        return out

    return command


SHORT = ["--batches", "1", "--prompt", 4, "--new-tokens", 2, "--repeats", 1]


@cpu_only
def test_the_command_prints_a_table(run: Callable[..., str], pruned: Path) -> None:
    lines = run("bench", pruned, *SHORT).splitlines()
    assert lines[0].split(maxsplit=1) == ["batch", "dense ms, tokens/s"]
    assert [line.split()[:2] for line in lines[1:3]] == [["prefill", "1"], ["decode", "1"]]
    assert lines[-1] == "notice: dense alone is measured: a CPU gains nothing from 2:4 today"


@cpu_only
def test_the_command_prints_json(run: Callable[..., str], pruned: Path) -> None:
    found = BenchReport.model_validate(json.loads(run("bench", pruned, *SHORT, "--json")))
    assert (found.prompt_tokens, found.new_tokens, found.repeats) == (4, 2, 1)
    assert len(found.measurements) == 2
