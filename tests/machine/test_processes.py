"""Two processes do what one does: the same masks, numbers and refusals, and survive each other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateur
from processes import DYING, RUNS, options
from secateur.errors import LostError, RecipeError
from secateur.machine import processes, rendezvous
from tiny import BLOCKS, fingerprint, make_model, make_tokens, save

SCRIPT = Path(__file__).parents[1] / "processes.py"
MOST_TIES = {"sparsegpt": 0.002}
"""Share of the weights whose place in a mask may depend on the order of a float sum; else 0."""


def torchrun(*arguments: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, one thread each; they must end by themselves."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        "--max-restarts", restarts, *arguments,
    ]  # fmt: skip
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in float32, whose last bits no storing makes larger; and its tokens."""
    folder = tmp_path_factory.mktemp("processes")
    save(make_model("llama"), folder / "model")
    save_file({"input_ids": make_tokens()}, folder / "tokens.safetensors")
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the two processes of `processes.py` said."""
    done = torchrun(SCRIPT, folder, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def two(folder: Path, said: subprocess.CompletedProcess[str]) -> Path:
    """What they made."""
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def record(two: Path, name: str, rank: int) -> Any:
    return json.loads((two / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_prune_as_one(two: Path, tmp_path: Path, run: str) -> None:
    alone = secateur.prune(**options(two, run), out=tmp_path / "one")
    one, both = weights(tmp_path / "one"), weights(two / "two" / run)
    assert one.keys() == both.keys()
    apart = sum(int(((one[name] == 0) != (both[name] == 0)).sum()) for name in one)
    assert apart <= MOST_TIES.get(run, 0) * alone.weights, apart
    if run != "sparsegpt":
        within = 0 if alone.recipe["method"] in ("wanda", "gblm") else 1e-4  # or the same bits
        assert all(torch.allclose(one[name], both[name], 0, within) for name in one)
    told = record(two, run, 0)
    written = json.loads((two / "two" / run / "run.json").read_text())
    assert told == record(two, run, 1) == written
    assert (told["processes"], alone.processes) == (2, 1)
    for block, other in zip(told["stages"][0]["blocks"], alone.blocks, strict=True):
        known = alone.recipe["schedule"] == "block" and run not in (
            "shortgpt",
            "greedy",
        )  # no zeros
        assert (block["output_error"] is not None) == known
        if alone.recipe["batch_size"] == 7:  # it is of first batches, which here hold everything
            within = 1e-2 if run == "sparsegpt" else 1e-5
            assert block["output_error"] == pytest.approx(other.output_error, rel=within)
    for text, same in zip(told["evaluations"], alone.evaluations, strict=True):
        assert text["perplexity"] == pytest.approx(same.perplexity, rel=1e-6)
        assert text["divergence"] == pytest.approx(same.divergence, rel=1e-6)
        assert text["predicted_tokens"] == same.predicted_tokens


def test_one_process_writes_and_leaves_nothing_else(two: Path) -> None:
    assert {path.name for path in (two / "two").iterdir()} == set(RUNS)


def test_weights_are_the_same_in_both(two: Path) -> None:
    """Of a model in memory, with experts that some process sends no token."""
    first, second = (load_file(two / f"live-{rank}.safetensors") for rank in (0, 1))
    live = make_model("mixtral")
    secateur.prune(live, method="sparsegpt", calibration=make_tokens(), route_all=True)
    for name, alone in live.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert float(((alone == 0) != (first[name] == 0)).double().mean()) <= 0.002


def test_a_process_may_have_no_window(two: Path) -> None:
    given = options(two, "wanda")
    alone = secateur.evaluate(
        given["model"], text=given["calibration"], sequence_length=32, windows=1
    )
    for rank in (0, 1):
        assert record(two, "evaluation", rank)["perplexity"] == alone.perplexity


def test_what_is_not_split_is_refused_in_both(two: Path) -> None:
    first, second = ((two / f"refused-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    few, alone = first.splitlines()
    assert few.startswith("1 calibration sequences for 2 processes; wanted one for each")
    assert alone == (
        "this is not split over 2 processes; wanted prune, or evaluate --text;"
        " try the same without torchrun"
    )
    assert not (two / "no").exists()


def test_another_number_of_processes_does_not_go_on(two: Path) -> None:
    with pytest.raises(RecipeError, match="1 finished blocks had processes 2, not 1") as caught:
        secateur.prune(**options(two, "wanda"), out=two / "left")
    assert "the same command as before" in str(caught.value)


def test_a_killed_process_ends_the_run_and_the_next_goes_on(
    two: Path, said: subprocess.CompletedProcess[str]
) -> None:
    (error,) = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert "another process of" in error
    assert error.endswith("try the same command: it goes on after the last block that was finished")
    events = [json.loads(line) for line in said.stderr.splitlines() if line.startswith("{")]
    assert [event["block"] for event in events if event["event"] == "block"] == list(range(BLOCKS))
    assert any("2 finished blocks are kept" in event.get("text", "") for event in events)
    assert any("has left: 2 finished blocks" in event.get("text", "") for event in events)
    assert said.stdout.count("pruned") == 1
    same, other = fingerprint(two / "dying"), fingerprint(two / "two" / DYING)
    del same["run.json"], other["run.json"]
    assert same == other
    assert not (two / ".dying.partial").exists()


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    done = torchrun(
        "-m", "secateur", "prune", folder / "model", "--method", "wanda", "--calibration",
        tmp_path / "nowhere.txt", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "nowhere.txt" in errors[0]
    assert re.findall(r"exitcode  : (-?\d+)", done.stderr) == ["2", "2"]
    assert list(tmp_path.iterdir()) == []


# --- alone ---


def test_alone_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes.start()
    assert (processes.number(), processes.count(), processes.first(), processes.owns(3)) == (
        0,
        1,
        True,
        True,
    )
    assert processes.owned(3).tolist() == [0, 1, 2]
    assert processes.own_file(Path("a.txt")) == Path("a.txt")
    tensor = torch.ones(2)
    processes.add_up([tensor])
    processes.copy_from(0, [tensor])
    assert tensor.tolist() == [1, 1]
    assert (processes.totals(1.5, 2), processes.highest(3), processes.gather([4])) == (
        [1.5, 2],
        3,
        [4],
    )
    assert processes.from_first(lambda: "made") == "made"
    processes.wait()
    processes.alone("anything")
    said: list[str] = []
    processes.tell_once(lambda: said.append("once"))
    assert said == ["once"]
    processes.stop()


# --- what torchrun set, and what only looks like it ---

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "RANK": "0",
    "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29517",
}  # fmt: skip


def surround(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """An environment as torchrun makes it, but for some variables."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {**TORCHRUN, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"TORCHELASTIC_RUN_ID": None},
        {"TORCHELASTIC_RUN_ID": None, "WORLD_SIZE": "many", "MASTER_ADDR": None},
        {"WORLD_SIZE": "1"},
    ],
    ids=str,
)
def test_variables_of_another_launcher_make_no_group(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]
) -> None:
    surround(monkeypatch, **changes)
    processes.start()
    assert processes.count() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"), ("RANK", None), ("RANK", "-1"), ("RANK", "2"), ("MASTER_PORT", "x"),
        ("MASTER_PORT", "9" * 5000), ("MASTER_PORT", "99999"), ("MASTER_ADDR", None),
        ("LOCAL_RANK", ""), ("WORLD_SIZE", "1e3"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    surround(monkeypatch, **{name: value})
    with pytest.raises(RecipeError, match=name):
        processes.start()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_nobody_else_is_told_soon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    """Whoever keeps the store waits for the others, and they for it: neither for an hour."""
    monkeypatch.setattr(rendezvous, "TO_MEET", timedelta(seconds=1))
    monkeypatch.setattr(rendezvous, "_ATTEMPT", timedelta(seconds=0.3))
    surround(monkeypatch, RANK=rank)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LostError, match="not all 2 came"):
        processes.start()
    assert "waits for the others of 2" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert processes.count() == 1


def test_waiting_for_others_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch, RANK="0")
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        processes.start()
    interrupt.join()
