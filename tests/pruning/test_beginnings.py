"""A model whose tokenizer begins every text with BOS is calibrated, measured, trained and asked so.

What is expected is computed by hand with transformers, BOS in every window.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.blocks import sweep
from secateur.data import Draw, load_calibration, self_written, token_sha256, with_more
from secateur.data.windows import Beginning
from secateur.errors import DataError, OutputError, RecipeError
from secateur.recipe import Bos
from secateur.record import RunRecord, read_record
from secateur.reporting import side_by_side
from secateur.reporting.reproduce import facts_of, recipe_of
from tiny import SENTENCES, make_model, make_tokenizer, make_tokens

BOS, LENGTH, WINDOWS = 1, 16, 6
SIZES: dict[str, Any] = {"sequence_length": LENGTH, "windows": WINDOWS}


@pytest.fixture(scope="module")
def begun_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer that begins every text with `<s>`."""
    folder = tmp_path_factory.mktemp("begun") / "llama"
    shutil.copytree(llama_folder, folder)
    make_tokenizer("<s> $A").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(SENTENCES * 4), encoding="utf-8")
    return path


def by_hand(text: Path, folder: Path, bos: Bos) -> Tensor:
    """All windows of a text, int64 [windows, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = [BOS, *ids] if bos == "stream" else ids
    before = [BOS] if bos == "window" else []
    room = LENGTH - len(before)
    parts = [ids[at : at + room] for at in range(0, len(ids) - room + 1, room)]
    return torch.tensor([[*before, *part] for part in parts])


def perplexity_by_hand(folder: Path, windows: Tensor) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [float(model(row[None], labels=row[None]).loss) for row in windows]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("bos", ["window", "stream", "none"])
def test_perplexity_is_that_of_transformers(begun_folder: Path, text: Path, bos: Bos) -> None:
    windows = by_hand(text, begun_folder, bos)[:WINDOWS]
    measured = secateur.evaluate(begun_folder, text=text, bos=bos, **SIZES)
    assert measured.protocol.token_sha256 == token_sha256(windows)
    assert measured.predicted_tokens == WINDOWS * (LENGTH - 1)
    assert measured.perplexity == pytest.approx(perplexity_by_hand(begun_folder, windows), rel=1e-5)
    assert (measured.protocol.bos, measured.protocol.prefix) == (bos, (BOS,))


def pruned(folder: Path, text: Path, **options: Any) -> RunRecord:
    values = {"method": "wanda", "calibration": text, "text": text, "samples": 8, **SIZES}
    return secateur.prune(folder, **{**values, **options})


@pytest.fixture(scope="module")
def run(begun_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run with every default."""
    return pruned(begun_folder, text, out=tmp_path_factory.mktemp("run") / "out")


def test_calibration_and_text_begin_so(begun_folder: Path, text: Path, run: RunRecord) -> None:
    windows = by_hand(text, begun_folder, "window")
    [evaluation] = run.evaluations
    expected = perplexity_by_hand(begun_folder, windows[:WINDOWS])
    assert evaluation.protocol.token_sha256 == token_sha256(windows[:WINDOWS])
    assert evaluation.dense_perplexity == pytest.approx(expected, rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(begun_folder)
    calibration = load_calibration(str(text), Draw(8, LENGTH), tokenizer=tokenizer)
    assert run.calibration is not None
    assert run.calibration.sha256 == calibration.protocol.sha256
    assert all(row in windows.tolist() for row in calibration.input_ids.tolist())
    assert run.settings["bos"] == "window"
    assert read_record(Path(run.settings["out"])) == run


@contextmanager
def stopped() -> Iterator[None]:
    """Inside, a run is interrupted while it works on its second block."""
    real = sweep.new_weights

    def new_weights(block: Any, *args: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_goes_on_with_the_same_beginning_only(
    begun_folder: Path, text: Path, run: RunRecord, tmp_path: Path
) -> None:
    with stopped():
        pruned(begun_folder, text, out=tmp_path / "out")
    with pytest.raises((OutputError, RecipeError), match="calibration tokens"):
        pruned(begun_folder, text, out=tmp_path / "out", bos="stream")
    assert pruned(begun_folder, text, out=tmp_path / "out").files == run.files


def test_where_nothing_is_added_another_beginning_is_the_same_run(
    llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    with stopped():
        pruned(llama_folder, text, out=tmp_path / "out", bos="stream")
    record = pruned(llama_folder, text, out=tmp_path / "out")
    assert record.files == pruned(llama_folder, text, out=tmp_path / "whole", bos="none").files


def compared(folder: Path, out: Path, **options: Any) -> list[RunRecord]:
    values = {"methods": "magnitude,wanda", "samples": 8, **SIZES, **options}
    return list(secateur.compare(folder, out=out, **values).records)


def test_a_comparison_knows_the_beginning(
    begun_folder: Path, llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held.safetensors"
    save_file({"input_ids": make_tokens(4, LENGTH)}, held)
    values: dict[str, Any] = {"calibration": text, "text": held}
    runs = compared(begun_folder, tmp_path / "a", **values)
    assert compared(begun_folder, tmp_path / "a", **values) == runs
    with pytest.raises(OutputError, match=r"this run has bos window.* wanted stream"):
        compared(begun_folder, tmp_path / "a", **values, bos="stream")
    assert len(compared(llama_folder, tmp_path / "c", **values)) == 2
    for record in compared(llama_folder, tmp_path / "c", **values, bos="none"):
        assert record.settings["bos"] == "window"  # it was found done, as bos makes no difference
    values |= {"methods": "wanda", "seeds": "1", "bos": "stream", "recover": 1}
    others = compared(begun_folder, tmp_path / "b", **values)
    [group] = side_by_side([*runs, *others])
    labels = [row.setting for row in group.rows if row.method == "wanda"]
    assert labels == ["bos=stream", "bos=window", "recovered, lm"]
    for recovered in (record.recovery for record in others if record.recovery is not None):
        assert (recovered.settings["bos"], recovered.text.bos) == ("stream", "stream")


def test_a_report_says_the_beginning_and_how_to_repeat_it(
    begun_folder: Path, text: Path, run: RunRecord, tmp_path: Path
) -> None:
    other = pruned(begun_folder, text, out=tmp_path / "out", bos="stream")
    groups = side_by_side([run, other])
    assert [len(group.rows) for group in groups] == [1, 1]
    told = {}
    for group in groups:
        repeated = recipe_of(group, group.rows[0])
        [bos] = [one.recipe["bos"] for one in group.runs]
        told[bos] = dict(facts_of(group))["text"]
        assert f"bos: {bos}" in repeated.yaml
        assert f"--bos {bos}" in repeated.commands[-1]
    assert "BOS in every window" in told["window"]
    assert "BOS before the text only" in told["stream"]


def test_an_older_record_is_of_a_stream(run: RunRecord) -> None:
    told = run.model_dump(mode="json")
    del told["settings"]["bos"]
    for protocol in (told["calibration"], told["evaluations"][0]["protocol"]):
        del protocol["bos"], protocol["prefix"]
    record = RunRecord.model_validate(told)
    assert record.settings["bos"] == "stream"
    assert record.calibration is not None
    assert (record.calibration.bos, record.evaluations[0].protocol.bos) == ("stream", "stream")


def test_what_the_model_writes_begins_as_the_tokenizer_begins_a_text(
    begun_folder: Path, run: RunRecord
) -> None:
    two = Beginning.of(make_tokenizer("<unk> <s> $A"), "window")
    model = make_model("llama", bos_token_id=7)
    sizes: dict[str, Any] = {"samples": 40, "sequence_length": 8, "seed": 0}

    def first(beginning: Beginning | None, count: int) -> set[tuple[int, ...]]:
        batch = self_written(model, beginning=beginning, **sizes)
        assert batch.input_ids.shape == (40, 8)
        return {tuple(row[:count]) for row in batch.input_ids.tolist()}

    assert first(two, 2) == {(3, BOS)}
    assert first(Beginning("stream", two.prefix), 1) == first(None, 1) == {(7,)}
    assert first(Beginning("window", ()), 1) == {(7,)}
    assert len(first(Beginning("none", two.prefix), 1)) > 10
    with pytest.raises(DataError, match="no room for text"):
        self_written(model, samples=1, sequence_length=2, seed=0, beginning=two)
    with pytest.raises(DataError, match="token id 9999"):
        self_written(model, beginning=Beginning("window", (9999,)), **sizes)


def test_more_text_begins_so_too(begun_folder: Path, tmp_path: Path) -> None:
    model = make_model("llama")
    beginning = Beginning("window", (BOS,))
    parts = make_tokens(6, 31)
    given = load_calibration(beginning.put_before(parts), Draw(6, 32), tokenizer=None)
    both = with_more(model, given, 5, 3, beginning)
    there = {tuple(window.tolist()) for row in parts for window in row.unfold(0, 16, 1)}
    assert both.input_ids.shape == (11, 32)
    assert both.input_ids[:, 0].tolist() == [BOS] * 11
    assert all(tuple(row[1:17].tolist()) in there for row in both.input_ids[:5])
    assert torch.equal(both.input_ids[5:], given.input_ids)
    record = secateur.prune(
        begun_folder, method="wanda", calibration="self", samples=2, written=2,
        sequence_length=LENGTH, out=tmp_path / "out",
    )  # fmt: skip
    assert record.calibration is not None
    assert (record.calibration.bos, record.calibration.prefix) == ("window", (BOS,))
    assert "behind the beginning" in record.calibration.origin["written"]


def test_recovery_trains_and_measures_so(
    begun_folder: Path, text: Path, run: RunRecord, tmp_path: Path
) -> None:
    record = secateur.recover(
        run.settings["out"], text=text, heldout=text, out=tmp_path / "out", steps=1, samples=4,
        validation=2, batch_size=2, **SIZES,
    )  # fmt: skip
    recovery = record.recovery
    assert recovery is not None
    assert recovery.dense is not None
    assert (recovery.text.bos, recovery.text.prefix) == ("window", (BOS,))
    [evaluation] = run.evaluations
    assert recovery.dense.protocol.token_sha256 == evaluation.protocol.token_sha256
    windows = by_hand(text, begun_folder, "window")[:WINDOWS]
    expected = perplexity_by_hand(begun_folder, windows)
    assert recovery.dense.perplexity == pytest.approx(expected, rel=1e-5)
