"""`secateur recover` and `secateur evaluate --tasks` as commands: output, events, a real kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from secateur.machine import waiting
from secateur.pruning.pipeline import run_pruning
from secateur.recipe import Recipe
from secateur.record import RunRecord, read_record
from secateur.record.check import check_folder
from tiny import Command


@pytest.fixture(scope="module")
def sparse_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "llama"
    run_pruning(Recipe.build({"model": str(llama_folder), "out": str(out), "method": "magnitude"}))
    return out


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    starts = torch.randint(4, 60, (40, 1), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("learnable") / "tokens.safetensors"
    save_file({"input_ids": starts + torch.arange(32)}, path)
    return path


def recovering(model: Path, text: Path, out: Path, *more: object) -> list[str]:
    """A short command line."""
    given = [
        "recover", model, "--text", text, "--heldout", text, "--windows", 8, "--out", out,
        "--sequence-length", 32, "--validation", 8, "--batch-size", 4, "--samples", 24,
        "--rank", 4, "--learning-rate", 1e-2, *more,
    ]  # fmt: skip
    return [str(word) for word in given]


def test_recover_says_what_it_did(
    sparse_folder: Path,
    text_file: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    words = recovering(sparse_folder, text_file, tmp_path / "out", "--steps", 8,
                       "--evaluate-every", 4)  # fmt: skip
    status, printed, told = command(*words)
    assert status == 0, told
    record = read_record(tmp_path / "out")
    assert isinstance(record, RunRecord)
    recovery = record.recovery
    assert recovery is not None
    assert recovery.recovered is not None
    assert f"recovered   perplexity {recovery.recovered.perplexity:.4f}" in printed
    assert "of what pruning cost" in printed
    assert f"written to {tmp_path / 'out'}" in printed
    events = [json.loads(line) for line in told.splitlines()]
    steps = [event for event in events if event.get("of") == "recover"]
    assert [event["step"] for event in steps] == [4, 8]
    assert steps[0]["seconds_left"] > 0
    assert steps[1]["validation"] == pytest.approx(recovery.curve[-1].validation_loss, abs=1e-4)
    assert not check_folder(str(tmp_path / "out"), "2:4").failing


def test_a_run_that_was_killed_for_real_goes_on(
    sparse_folder: Path,
    text_file: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    more = ("--steps", 40, "--evaluate-every", 2)
    words = recovering(sparse_folder, text_file, tmp_path / "out", *more)
    started = subprocess.Popen(
        [sys.executable, "-m", "secateur", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert started.stderr is not None
    for line in started.stderr:
        if line.startswith("{") and json.loads(line).get("step") == 6:
            started.send_signal(signal.SIGKILL)
            break
    assert started.wait(timeout=60) == -signal.SIGKILL
    started.stderr.close()
    assert not (tmp_path / "out").exists()
    status, _, told = command(*words, "--resume")
    assert status == 0, told
    whole = recovering(sparse_folder, text_file, tmp_path / "whole", *more)
    assert command(*whole).status == 0
    resumed, alone = read_record(tmp_path / "out"), read_record(tmp_path / "whole")
    assert resumed is not None
    assert resumed.recovery is not None
    assert resumed.recovery.interruptions == 1
    assert alone is not None
    assert alone.recovery is not None
    assert resumed.recovery.curve[-1].validation_loss == pytest.approx(
        alone.recovery.curve[-1].validation_loss, rel=1e-5
    )


def test_tasks_are_printed_side_by_side_and_recorded(
    sparse_folder: Path,
    llama_folder: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny.SENTENCES) * 6, encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    for path in sparse_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    words = [
        "evaluate", str(model), "--tasks", "continuation", "--text", str(text), "--against",
        str(llama_folder), "--limit", "20", "--record",
    ]  # fmt: skip
    status, printed, told = command(*words)
    assert status == 0, told
    record = read_record(model)
    assert record is not None
    (score,) = record.tasks[0].scores
    assert "dense" in printed
    assert f"{score.value:.4f} ± {score.standard_error:.4f}" in printed
    assert f"{score.difference:+.4f}" in printed
    named = [event.get("doing", "") for event in map(json.loads, told.splitlines())]
    assert any(doing.endswith(": task continuation") for doing in named)


def test_evaluate_needs_something_to_evaluate_on(llama_folder: Path, command: Command) -> None:
    status, _, told = command("evaluate", llama_folder)
    assert status == 2
    assert told == "error: nothing to evaluate on; try --text, --tasks or --images\n"
