"""`benchmarks/real.py` on a tiny model: its plan, its runs, what is done again, its tables."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import real
import real_plan
import results

SIZE = ("--samples", "4", "--sequence-length", "16", "--windows", "2", "--dtype", "float32")
Call = Callable[..., str]


@pytest.fixture
def call(
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """`call(words...)` -> what the command prints, on a tiny model and texts of its own."""
    monkeypatch.setattr(results, "LOOK", 0.01)
    shutil.copytree(llama_folder, tmp_path / "tiny")
    for name in ("valid.txt", "test.txt", "calibration/a.txt", "heldout/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        turned = tiny.SENTENCES[len(name) % 5 :]
        (tmp_path / name).write_text(" ".join(turned * 9), encoding="utf-8")

    def run(*words: str) -> str:
        places = {"out": tmp_path / "out", "model": tmp_path / "tiny"}
        places |= {"wikitext": tmp_path, "books": tmp_path}
        given = [word for name, path in places.items() for word in (f"--{name}", str(path))]
        monkeypatch.setattr(sys, "argv", ["real.py", *words, *given, *SIZE])
        real.main()
        return capsys.readouterr().out

    return run


def cells(text: str, row: str) -> list[str]:
    """The cells of the first row of this name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_what_is_done_stays_done_and_what_fails_says_why(call: Call, tmp_path: Path) -> None:
    asked = ("grid", "--methods", "magnitude", "wanda", "--seeds", "0", "1", "--patterns", "2:4")
    first = call(*asked, "3:5")  # which fits no width of the tiny model
    log = tmp_path / "out" / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    status = {entry["run"].rpartition("/")[2]: entry["status"] for entry in entries}
    assert status == {
        "magnitude_2of4_seed0": "done",
        "wanda_2of4_seed0": "done",
        "wanda_2of4_seed1": "done",
        "magnitude_3of5_seed0": "failed",
        "wanda_3of5_seed0": "failed",
        "wanda_3of5_seed1": "failed",
    }
    assert entries[0]["versions"]
    assert "commit" in entries[0]
    assert "Failed: magnitude_3of5_seed0, wanda_3of5_seed0, wanda_3of5_seed1 (PatternError" in first
    overview = cells(first, "wanda")
    assert "±" in overview[0]
    assert overview[1:] == ["", "", ""]
    assert cells(first, "alps") == ["", "", "", ""]
    kept = tmp_path / "out" / "tiny" / "4x16" / "runs" / "wanda_2of4_seed0"
    assert list(kept.glob("*.safetensors"))
    again = call(*asked)
    assert len(log.read_text().splitlines()) == len(entries)
    assert cells(again, "wanda") == overview


def test_tables_take_their_place_in_a_page(call: Call, tmp_path: Path) -> None:
    call("paper", "--rates", "1e-3", "--seeds", "0")
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- real-paper -->\n\nold\n\n<!-- end of real-paper -->\n\nafter\n")
    text = call("tables", "--rates", "1e-3", "--markdown", str(page))
    for name in ("Wanda", "Wanda++, preset paper, rate 0.001", "Wanda++, preset auto, effort fast"):
        assert float(cells(text, name)[0]) > 1
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("before\n\n<!-- real-paper -->")
    assert written.index("rate 0.001") < written.index("<!-- end of real-paper -->\n\nafter")
    assert all(f"<!-- end of real-{part} -->" in written for part in real.PARTS)


def test_kept_models_are_trained_back_packed_and_compared(call: Call, tmp_path: Path) -> None:
    words = ("recovery", "--methods", "wanda", "--steps", "2", "--train-samples", "4")
    text = call(*words)
    *_, same = cells(text, "wanda, recovered")
    assert same == "yes"
    assert cells(text, "wanda, pruned")[1] == cells(call("grid", *words[1:3]), "wanda")[0]
    (line,) = (tmp_path / "out" / "tiny" / "4x16" / "recovery.jsonl").read_text().splitlines()
    assert json.loads(line)["zeros"][0] == json.loads(line)["zeros"][1] > 0


def test_the_plan_has_every_cell_once() -> None:
    asked = SimpleNamespace(
        methods=None, patterns=None, seeds=None, calibrations=None, rates=real_plan.RATES,
        samples=64, sequence_length=512, name="", set={},
    )  # fmt: skip
    by_part = {
        part: [
            (group.setting, method, pattern, seed)
            for group in real_plan.groups(part, real_plan.FIRST, asked)
            for method in group.methods
            for pattern in group.patterns
            for seed in group.seeds
        ]
        for part in real.PARTS
    }
    assert all(len(set(planned)) == len(planned) for planned in by_part.values())
    grid = by_part["grid"]
    assert len([cell for cell in grid if cell[1:3] == ("alps", "2:4")]) == 3
    assert {cell[1] for cell in grid if cell[2] == "2:4"} == set(real_plan.METHODS)
    assert set(by_part["tasks"]) == set(by_part["recovery"]) <= set(grid)
    every = set(real_plan.MIXTURES[-1].split("+"))
    left_out = [every - set(mixture.split("+")) for mixture in real_plan.MIXTURES]
    assert all({text} in left_out for text in ("wikitext", "books", "builtin"))
