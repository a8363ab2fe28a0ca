"""Where output is no terminal, long work says what it is: nobody waits in the dark."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.machine import waiting
from secateur.progress import JsonLines
from tiny import Command

EVERY = 0.02
"""Seconds of silence after which a line comes here."""
LONG = 12 * EVERY
"""Seconds that the slow piece of work takes."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", EVERY)


@pytest.fixture
def slow(short: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`slow("secateur.module.function")` -> its first call takes long."""

    def make(name: str) -> None:
        module, _, function = name.rpartition(".")
        before, called = getattr(import_module(module), function), list[bool]()

        def work(*args: Any, **options: Any) -> Any:
            if not called:
                called.append(True)
                time.sleep(LONG)
            return before(*args, **options)

        monkeypatch.setattr(f"{module}.{function}", work)

    return make


@pytest.fixture(scope="module")
def folders(
    llama_folder: Path,
    tokens_file: Path,
    text_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A model, texts, and what commands before have made of them, by name."""
    made = tmp_path_factory.mktemp("made")
    secateur.prune(llama_folder, method="magnitude", pattern="2:4", out=made / "sparse")
    secateur.pack(made / "sparse", made / "packed")
    given = {"dense": llama_folder, "tokens": tokens_file, "texts": text_folder}
    return {**given, "sparse": made / "sparse", "packed": made / "packed"}


PRUNE = "prune {dense} --pattern 2:4 --samples 4 --sequence-length 16 --out {out}"
RECOVER = "recover {sparse} --text {texts} --out {out} --steps 2 --sequence-length 16"
SLOW: list[tuple[str, str, str]] = [
    (f"{PRUNE} --method wanda --calibration self", "data.selfwritten._without_settings",
     "secateur prune: the dense model writes text"),
    (f"{PRUNE} --method wanda --calibration {{texts}}", "data.windows.tokenise",
     "secateur prune: reading the calibration text"),
    (f"{PRUNE} --method gblm --calibration {{tokens}}", "blocks.full_gradients._of_row",
     "secateur prune: gradients, 3 of 6: gradients of the loss: 0 of "),
    (f"{PRUNE} --method sparsegpt --calibration {{tokens}}", "blocks.new_weights.check_finite",
     "secateur prune: sparsegpt 2:4: solve, 0 of "),
    (f"{PRUNE} --method wanda++-ro --calibration {{tokens}}", "blocks.regional._backward",
     "secateur prune: wanda++-ro 2:4: optimise, 0 of "),
    (f"{PRUNE} --method magnitude --text {{texts}}", "evaluation.perplexity.Stream",
     "secateur prune: measuring the dense model: dense"),
    ("evaluate {sparse} --text {texts} --sequence-length 16 --windows 4",
     "evaluation.perplexity._logits",
     "secateur evaluate: measuring {sparse}: run, 2 of 3: likelihood of the windows: 0 of "),
    ("compare {dense} --methods wanda --patterns 2:4 --calibration {tokens}"
     " --text {texts} --samples 4 --sequence-length 16 --windows 4 --out {out}",
     "blocks.sweep.observe", "secateur compare: wanda_2of4_seed0: wanda 2:4"),
    (RECOVER, "recovery.training.language_model_loss",
     "secateur recover: recover: judging on the validation sequences"),
    ("pack {sparse} --out {out}", "export.folders.pack_tensor", "secateur pack: pack"),
    ("unpack {packed} --out {out}", "export.folders._file", "secateur unpack: unpack"),
    ("bench {sparse} --prompt 4 --new-tokens 2 --repeats 1 --batches 1",
     "inference.benchmark.measure", "secateur bench: bench: timing dense at each batch size"),
    ("check {sparse}", "record.check.audit", "secateur check: counting zeros by block: 0 of 3"),
    ("check {sparse}", "record.check_files._vouched", "secateur check: hashing files: 0 of "),
    ("report {sparse} --format csv", "record.find._read", "secateur report: reading records"),
]  # fmt: skip
"""Command, the function that is made slow, and how what is being done then is called."""


@pytest.mark.parametrize(("line", "function", "called"), SLOW, ids=lambda text: text[:40])
def test_what_takes_long_is_named(
    line: str,
    function: str,
    called: str,
    folders: dict[str, Path],
    slow: Callable[[str], None],
    command: Command,
    tmp_path: Path,
) -> None:
    slow(f"secateur.{function}")
    arguments = line.format(**folders, out=tmp_path / "out").split()
    status, _, err = command(*arguments)
    assert status == 0, err
    events = [json.loads(told) for told in err.splitlines()]
    told = [event["doing"] for event in events if event["event"] == "waiting"]
    assert [doing for doing in told if doing.startswith(called.format(**folders))], told
    assert not any(thread.name == "secateur-watch" for thread in threading.enumerate())


@pytest.fixture
def watched(short: None) -> Iterator[io.StringIO]:
    """What a watch that is at work writes."""
    stream = io.StringIO()
    with waiting.Watch(stream):
        yield stream


def doings(stream: io.StringIO) -> list[str]:
    return [json.loads(line).get("doing") for line in stream.getvalue().splitlines()]


def test_work_within_work_is_named_from_outside_in(watched: io.StringIO) -> None:
    with waiting.doing("one"), waiting.doing("two"):
        for _ in waiting.each("three", [0]):
            time.sleep(LONG)
    assert "one: two: three: 0 of 1" in doings(watched)
    assert waiting.what() == ""


def test_blocks_and_phases_are_counted_and_forgotten() -> None:
    with waiting.doing("all"), JsonLines(io.StringIO()) as told:
        told.begin("wanda 2:4", 2)
        told.tick("observe", 1, 8)
        assert waiting.what() == "all: wanda 2:4: observe, 1 of 8"
        told.block(block=0)
        assert waiting.what() == "all: wanda 2:4, 1 of 2"
        told.block(block=1)
        assert waiting.what() == "all"
        told.begin("more", 2)
    assert waiting.what() == ""


def test_no_line_comes_where_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.9)
    stream = io.StringIO()
    with waiting.Watch(stream):
        for _ in range(12):
            waiting.tell(stream, {"event": "notice"})
            time.sleep(0.09)
    assert doings(stream) == [None] * 12


def test_a_stream_that_is_closed_ends_the_watch_and_nothing_else(short: None) -> None:
    stream = io.StringIO()
    with waiting.Watch(stream) as watch:
        stream.close()
        time.sleep(LONG)
        assert not watch._thread.is_alive()


def test_what_another_thread_does_is_not_what_is_waited_for() -> None:
    names: list[str] = []

    def work() -> None:
        with waiting.doing("reading ahead"):
            names.append(waiting.what())

    thread = threading.Thread(target=work)
    with waiting.doing("pruning"):
        thread.start()
        thread.join()
    assert names == ["pruning"]


def test_what_fails_is_not_being_done_any_more() -> None:
    with pytest.raises(ValueError, match="no"), waiting.doing("failing"):
        raise ValueError("no")
    assert waiting.what() == ""
