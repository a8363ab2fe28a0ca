"""GGUF on the command line: `pack --format gguf`, a file as MODEL, a line for what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bad_input import Case, Place, check_case, cut, files_of_5_kB
from secateur.checkpoint.durable import unfinished_name
from secateur.checkpoint.from_gguf import CACHE
from secateur.checkpoint.lock import alone_at
from tiny import Command, make_model


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(CACHE, str(folder))
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def place(
    tmp_path: Path, shared: Path, llama_folder: Path, tokens_file: Path, text_folder: Path
) -> Place:
    return Place(tmp_path, llama_folder, shared, tokens_file, text_folder)


def test_a_file_goes_out_and_in(
    command: Command, llama_folder: Path, tokens_file: Path, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "tiny.gguf"
    done = command("pack", llama_folder, "--format", "gguf", "--type", "q8_0", "--out", file)
    assert done.status == 0, done.err
    assert "(23 Q8_0, 7 F32)" in done.out
    assert str(file) in done.out.replace("\n", "")
    assert [event["part"] for event in done.events][:3] == ["token_embd.weight", "blk.0", "blk.1"]
    asked = ["--text", tokens_file, "--sequence-length", 16, "--json"]
    said = command("evaluate", file, *asked)
    assert said.status == 0, said.err
    dense = json.loads(command("evaluate", llama_folder, *asked).out)
    read = json.loads(said.out)
    assert read["perplexity"] == pytest.approx(dense["perplexity"], rel=0.02)
    [made] = (cache / "gguf").iterdir()
    run = command(
        "prune", file, "--method", "magnitude", "--out", tmp_path / "pruned", "--pattern", "2:4"
    )
    assert run.status == 0, run.err
    told = [event["text"] for event in run.events if event["event"] == "notice"]
    assert any(str(file) in text and str(made) in text for text in told)
    assert list((cache / "gguf").iterdir()) == [made]
    assert command("check", tmp_path / "pruned").status == 0
    again = command("pack", tmp_path / "pruned", "--format", "gguf", "--out", file, "--overwrite")
    assert again.status == 0, again.err


def to_gguf(model: object, *more: object, out: object = "m.gguf") -> list[object]:
    return ["pack", model, "--format", "gguf", "--out", out, *more]


def of(family: str, **changes: Any) -> Callable[[Place], list[object]]:
    """A command that writes such a model."""
    return lambda p: to_gguf(p.model(make_model(family, **changes)))


def weight(value: float) -> Callable[[Place], list[object]]:
    """A command that writes a model one weight of which is this."""

    def make(place: Place) -> list[object]:
        model = make_model("llama")
        with torch.no_grad():
            matrix: Tensor = model.get_parameter("model.layers.1.mlp.up_proj.weight")
            matrix[3, 5] = value
        return to_gguf(place.model(model))

    return make


def taken(place: Place) -> list[object]:
    return to_gguf(place.dense, out=place.file("taken.gguf", "somebody's"))


BAD: dict[str, Case] = {
    "another family": Case(of("opt"), ["'opt' is not written to GGUF", "one of llama, mistral"]),
    "experts": Case(of("mixtral"), ["'mixtral' is not written", "did you mean 'mistral'?"]),
    "a bias in attention": Case(
        of("llama", attention_bias=True), ["attention_bias is True", "GGUF of 'llama'"]
    ),
    "a window": Case(of("mistral"), ["sliding_window is 12"]),
    "another activation": Case(of("qwen2", hidden_act="relu"), ["hidden_act is relu", "silu"]),
    "another scale": Case(of("gemma2", tie_word_embeddings=True), ["query_pre_attn_scalar is 256"]),
    "other frequencies": Case(
        of("llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                                     "original_max_position_embeddings": 32}),
        ["type 'yarn'", "default, linear or llama3"],
    ),
    "half of a head": Case(
        of("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                     "partial_rotary_factor": 0.5}),
        ["for whole heads"],
    ),
    "no tokenizer": Case(
        lambda p: to_gguf(p.copy(lambda f: (f / "tokenizer.json").unlink())),
        ["no tokenizer.json", "save_pretrained"],
    ),
    "too large": Case(weight(1e6), ["up_proj.weight is 1e+06", "65504", "try --type BF16"]),
    "infinite": Case(weight(float("inf")), ["is inf", "another copy"]),
    "no number": Case(weight(float("nan")), ["is nan"]),
    "another ending": Case(
        lambda p: to_gguf(p.dense, out="m.bin"), ["ends in .gguf", "try m.bin.gguf"]
    ),
    "a folder": Case(lambda p: to_gguf(p.dense, out="."), ["a GGUF file has another name"]),
    "a file that is there": Case(taken, ["the file exists", "--overwrite"]),
    "a full disk": Case(
        lambda p: to_gguf(p.dense), ["cannot be written", "m.gguf"], around=files_of_5_kB
    ),
    "another type": Case(lambda p: to_gguf(p.dense, "--type", "Q3"), ["'Q3' is not one of"]),
    "a type of a folder": Case(
        lambda p: ["pack", p.dense, "--type", "F16", "--out", "o"], ["--type is of a GGUF file"]
    ),
    "code": Case(lambda p: to_gguf(p.dense, "--trust-remote-code"), ["no code is run"]),
    "another format": Case(
        lambda p: ["pack", p.dense, "--format", "ggml", "--out", "o"], ["'ggml' is not one of"]
    ),
    "no GGUF file in prune": Case(
        lambda p: p.prune(model=p.file("m.gguf", "nonsense")), ["it begins with b'nons'"]
    ),
    "in evaluate": Case(
        lambda p: p.evaluate(model=p.file("m.gguf", b"GGUF\x03")), ["the file is cut off"]
    ),
    "in check": Case(lambda p: ["check", p.file("m.gguf", b"GGUF" + bytes(80))], ["m.gguf"]),
    "in compare": Case(
        lambda p: ["compare", p.file("m.gguf", ""), "--out", "o", "--text", p.tokens,
                   "--calibration", p.tokens],
        ["not a GGUF file"],
    ),
    "in bench": Case(lambda p: ["bench", p.file("m.gguf", "")], ["not a GGUF file"]),
    "in pack": Case(lambda p: to_gguf(p.file("m.gguf", ""), out="n.gguf"), ["not a GGUF file"]),
    "in unpack": Case(
        lambda p: ["unpack", p.file("m.gguf", ""), "--out", "o"], ["not a GGUF file"]
    ),
    "in recover": Case(
        lambda p: ["recover", p.file("m.gguf", ""), "--text", p.tokens, "--out", "o"],
        ["not a GGUF file"],
    ),
    "as the dense model": Case(
        lambda p: p.evaluate("--against", p.file("m.gguf", "")), ["not a GGUF file"]
    ),
    "a revision of a file": Case(
        lambda p: ["check", p.file("m.gguf", ""), "--revision", "main"],
        ["a GGUF file has no revisions"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_nothing_left(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_case(BAD[name], place, monkeypatch, capsys)


@pytest.mark.parametrize("out", [True, False], ids=["out", "in"])
def test_a_missing_library_is_named(
    out: bool, command: Command, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    if not out:
        assert command("pack", llama_folder, "--format", "gguf", "--out", file).status == 0
    monkeypatch.setitem(sys.modules, "gguf", None)
    given = to_gguf(llama_folder, out=file) if out else ["check", file]
    done = command(*given)
    assert done.status == 2
    line = done.err.splitlines()[-1]
    assert line == "error: GGUF files need the gguf library; try pip install 'secateur[quantize]'"


def test_the_file_that_was_given_is_named_and_not_the_folder_of_the_cache(
    command: Command, llama_folder: Path, tokens_file: Path, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    command("pack", llama_folder, "--format", "gguf", "--out", file)
    out = ["--out", tmp_path / "o"]
    for asked, status in (
        (["check", file, "--pattern", "2:4"], 1),
        (["check", file, "--source", llama_folder], 2),
        (["unpack", file, *out], 2),
        (["recover", file, "--text", tokens_file, *out], 2),
    ):
        done = command(*asked)
        assert done.status == status
        line = done.err.splitlines()[-1]
        assert f" in {file}" in line
        assert str(cache) not in line


def test_what_a_killed_run_left_is_removed(
    command: Command, llama_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    left, others = unfinished_name(file), unfinished_name(tmp_path / "n.gguf")
    left.write_bytes(b"GGUF")
    others.write_bytes(b"GGUF")
    assert command("pack", llama_folder, "--format", "gguf", "--out", file).status == 0
    assert {*tmp_path.iterdir()} == {file, others}


def test_of_two_runs_at_one_file_the_second_is_refused(
    command: Command, llama_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    at_work = unfinished_name(file)
    at_work.write_bytes(b"GGUF")
    with alone_at(file):
        done = command("pack", llama_folder, "--format", "gguf", "--out", file)
    assert done.status == 2
    assert "another run is writing here" in done.err
    assert [*tmp_path.iterdir()] == [at_work]


def test_a_cut_file_says_where(command: Command, llama_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    command("pack", llama_folder, "--format", "gguf", "--out", file)
    cut("m.gguf", 100)(tmp_path)
    done = command("check", file)
    assert done.status == 2
    assert "ends at byte" in done.err
    assert "try fetching the file again" in done.err


def test_a_cache_that_cannot_be_is_a_line(
    command: Command, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("pack", llama_folder, "--format", "gguf", "--out", tmp_path / "m.gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    done = command("check", tmp_path / "m.gguf")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert CACHE in done.err
