"""`secateur compare`, `demo` and `report` as commands: what they write and print."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import secateur
from secateur import methods
from secateur.comparison import demo
from secateur.evaluation.zero_shot import Answers, Questions
from secateur.progress import Progress
from secateur.record import read_record
from tiny import Command


def test_compare_writes_runs_tables_and_a_report(
    command: Command, llama_folder: Path, tokens_file: Path, text_folder: Path, tmp_path: Path
) -> None:
    arguments = (
        "compare", llama_folder, "--methods", "magnitude,wanda", "--patterns", "2:4, 50%",
        "--seeds", "0,1", "--calibration", tokens_file, "--text", tokens_file, "--samples", 6,
        "--also-text", text_folder, "--windows", 6, "--sequence-length", 16, "--out",
        tmp_path / "out",
    )  # fmt: skip
    status, out, err = command(*arguments)
    assert status == 0, err
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert runs == [
        "magnitude_2of4_seed0", "magnitude_50pct_seed0",
        "wanda_2of4_seed0", "wanda_2of4_seed1", "wanda_50pct_seed0", "wanda_50pct_seed1",
    ]  # fmt: skip
    for name in runs:
        record = read_record(tmp_path / "out" / "runs" / name)
        assert record is not None
        assert record.evaluations[0].dense_perplexity is not None
        assert name in out
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["pattern"], row["seeds"]) for row in rows] == [
        (method, pattern, seeds)
        for pattern in ("2:4", "50%")
        for method, seeds in (("magnitude", "0"), ("wanda", "0 1"))
        for _ in ("tokens_file", "text_folder")
    ]
    assert [Path(row["text"]) for row in rows] == [tokens_file, text_folder] * 4
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| perplexity, tokens.safetensors | perplexity, texts" in table
    assert "| 2:4 | wanda |" in table
    assert "\\toprule" in (tmp_path / "out" / "table.tex").read_text()
    assert "<html" in (tmp_path / "out" / "report.html").read_text()

    rows_before = (tmp_path / "out" / "table.csv").read_bytes()
    status, out, _ = command(*arguments)
    assert status == 0
    assert out.count("found done") == 6
    assert (tmp_path / "out" / "table.csv").read_bytes() == rows_before

    status, out, _ = command("report", tmp_path / "out", "--format", "csv")
    assert status == 0
    assert out.encode() == rows_before.replace(b"\r\n", b"\n")


def test_demo_shows_methods_on_the_bundled_model(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that scores, one that solves, one that refines; `make demo` shows all, for minutes."""
    shown = [methods.get(name) for name in ("magnitude", "sparsegpt", "wanda++")]
    monkeypatch.setattr(methods, "every", lambda: tuple(shown))
    for name, value in {"SAMPLES": 4, "SEQUENCE_LENGTH": 64, "WINDOWS": 4}.items():
        monkeypatch.setattr(demo, name, value)
    status, out, err = command("demo", "--out", tmp_path / "out")
    assert status == 0, err
    for method in shown:
        folder = tmp_path / "out" / "runs" / f"{method.name}_2of4_seed0"
        record = read_record(folder)
        assert record is not None
        assert record.sample is not None
        assert "lines" in record.sample.dense
        assert record.sparsity == 0.5
        assert (folder / "config.json").is_file()
        assert f"\n{method.name}\n" in out
    done, _, further = out.partition("\nthe same on a real model")
    assert done.rstrip().endswith(str(tmp_path / "out" / "report.html"))
    assert [line.split()[0] for line in further.splitlines()[1:]] == ["python", "secateur"]
    status, out, _ = command("demo", "--out", tmp_path / "out")
    assert status == 0
    assert out.count("found done") == len(shown)
    status, out, err = command("check", folder)
    assert status == 0, err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seeds", "0,x"], "whole numbers"),
        (["--seeds", ""], "no seed to compare"),
        (["--methods", "wanda,wandaa"], "did you mean 'wanda'"),
        (["--methods", ","], "no method to compare"),
        (["--patterns", "2:4,2:5"], "groups of 5 do not divide the 32 inputs"),
    ],
)
def test_a_wrong_list_costs_one_line(
    command: Command, flags: list[str], told: str, llama_folder: Path, tokens_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {
        "--calibration": tokens_file, "--text": tokens_file, "--samples": 4,
        "--sequence-length": 16, "--out": tmp_path / "out", flags[0]: flags[1],
    }  # fmt: skip
    status, _, err = command(
        "compare", llama_folder, *(part for pair in given.items() for part in pair)
    )
    assert status == 2
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()  # not even the runs that could be done


@pytest.mark.parametrize(("name", "told"), [("taken", "is a file"), ("model", "a model lies in")])
def test_an_out_that_is_no_comparison_is_refused_before_any_work(
    command: Command, name: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("precious")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    status, out, err = command("compare", "nowhere", "--text", "builtin", "--out", tmp_path / name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert (tmp_path / "taken").read_text() == "precious"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_compare_trains_back_what_it_pruned(
    command: Command, llama_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    arguments = (
        "compare", llama_folder, "--methods", "magnitude,wanda", "--calibration", text_folder,
        "--calibration", "self", "--shares", "3,1",
        "--text", text_folder, "--samples", 4, "--sequence-length", 16, "--windows", 6,
        "--recover", 8, "--objective", "distill", "--out", tmp_path / "out",
    )  # fmt: skip
    status, out, err = command(*arguments)
    assert status == 0, err
    for name in ("magnitude_2of4_seed0", "wanda_2of4_seed0"):
        folder = tmp_path / "out" / "runs" / f"{name}_recovered"
        record = read_record(folder)
        assert record is not None
        assert record.recovery is not None
        assert record.recovery.settings["objective"] == "distill"
        assert record.recovery.dense is not None
        written = {part.source: part.sequences for part in record.recovery.text.parts}
        assert written == {str(text_folder): 72, "self": 24}
        assert record.recovery.zeros_after >= record.recovery.zeros_before > 0
        assert f"{name}_recovered" in out
        status, _, err = command("check", folder, "--pattern", "2:4")
        assert status == 0, err
    table = (tmp_path / "out" / "table.md").read_text()
    assert "wanda (recovered, distill)" in table
    assert "| 2:4 | wanda |" in table
    status, out, _ = command(*arguments)
    assert status == 0
    assert out.count("found done") == 4
    status, _, err = command(*(10 if part == 8 else part for part in arguments))
    assert status == 2
    assert "steps 8" in err


def test_compare_asks_dense_pruned_and_recovered_models(
    command: Command, llama_folder: Path, text_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[str] = []
    real = Questions.ask

    def ask(self: Questions, folder: Path, shown: Progress) -> Answers:
        asked.append(folder.name)
        return real(self, folder, shown)

    monkeypatch.setattr(Questions, "ask", ask)
    out_folder = tmp_path / "out"
    arguments = [
        "compare", llama_folder, "--methods", "magnitude,wanda", "--calibration", text_folder,
        "--text", text_folder, "--samples", 4, "--sequence-length", 16, "--windows", 6,
        "--out", out_folder,
    ]  # fmt: skip
    status, _, err = command(*arguments)
    assert status == 0, err
    assert asked == []
    arguments += ["--recover", 4, "--tasks", "offline", "--limit", 20]
    status, out, err = command(*arguments)
    assert status == 0, err
    runs = ["magnitude_2of4_seed0", "wanda_2of4_seed0"]
    runs += [f"{name}_recovered" for name in runs]
    assert asked == [llama_folder.name, *runs]
    with (out_folder / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    named = {f"{line['method']} {line['setting']}": line for line in lines}
    for name in runs:
        record = read_record(out_folder / "runs" / name)
        assert record is not None
        alone = secateur.evaluate(
            out_folder / "runs" / name, tasks="offline", against=llama_folder, text=text_folder,
            limit=20,
        )  # fmt: skip
        (found,) = record.tasks
        assert found.scores == alone.scores
        (score,) = found.scores
        assert score.documents == 20
        line = named[f"{record.recipe['method']} {'recovered, lm' * (record.recovery is not None)}"]
        assert float(line["continuation_acc"]) == score.value
        assert float(line["continuation_acc_standard_error"]) == score.standard_error
        assert float(line["dense_continuation_acc"]) == score.dense
    assert "Zero-shot tasks: the mean over seeds" in out
    assert "continuation acc" in (out_folder / "table.md").read_text().splitlines()[2]
    assert "Zero-shot tasks" in (out_folder / "report.html").read_text()

    asked.clear()
    status, out, _ = command(*arguments)
    assert status == 0
    assert asked == []
    assert out.count("found done") == 4
    arguments[-1] = 10
    status, out, _ = command(*arguments)
    assert status == 0
    assert asked == [llama_folder.name, *runs]
    record = read_record(out_folder / "runs" / runs[0])
    assert record is not None
    assert [scored.limit for scored in record.tasks] == [10]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tasks", "hellaswog"], "unknown task 'hellaswog'"),
        (["--tasks", ","], "no task in --tasks"),
        (["--tasks", "offline", "--include-path", "/nowhere"], "no such folder"),
        (["--limit", 5], "are of --tasks; wanted it too"),
    ],
)
def test_tasks_that_cannot_be_asked_cost_one_line_before_any_work(
    command: Command, flags: list[object], told: str, llama_folder: Path, text_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    status, out, err = command(
        "compare", llama_folder, "--methods", "magnitude", "--calibration", text_folder,
        "--text", text_folder, "--sequence-length", 16, "--out", tmp_path / "out", *flags,
    )  # fmt: skip
    assert status == 2
    assert told in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "out").exists()
