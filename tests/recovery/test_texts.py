"""What a recovery trains on: several texts by their shares, and what the dense model writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import secateur
import tiny
from secateur.data.mixture import by_source
from secateur.errors import RecipeError
from secateur.record import read_record
from secateur.recovery import Recovery
from secateur.recovery.prepare import prepare_recovery


def values(sparse: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(sparse), "out": str(out), "sequence_length": 16, "samples": 6, "validation": 2,
        "steps": 2, "batch_size": 2, "rank": 2, **changes,
    }  # fmt: skip


def test_several_texts_give_parts_by_their_shares(
    sparse_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    texts = [str(text_folder / "0.txt"), "self"]
    asked = Recovery.build(values(sparse_folder, tmp_path / "out", text=texts, shares="1,3"))
    prepared = prepare_recovery(asked)
    parts = by_source(prepared.text)
    assert [(part.source, len(rows)) for part, rows in parts] == [(texts[0], 2), ("self", 6)]
    written = parts[1][1]
    again = prepare_recovery(asked.model_copy(update={"seed": 1}))
    assert not written.equal(by_source(again.text)[1][1])
    assert prepare_recovery(asked).text.input_ids.equal(prepared.text.input_ids)


def test_the_dense_model_writes_and_not_the_sparse_one(
    sparse_folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    asked = values(sparse_folder, tmp_path / "out", text="self")
    mine, other = (
        prepare_recovery(Recovery.build({**asked, "dense": str(dense)})).text.input_ids
        for dense in (llama_folder, sparse_folder)
    )
    assert prepare_recovery(Recovery.build(asked)).text.input_ids.equal(mine)  # run.json names it
    assert not mine.equal(other)


def test_a_recovery_on_a_mixture_is_whole(
    sparse_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = values(sparse_folder, out, text=[str(text_folder), "self"], objective="distill")
    done = secateur.recover(**asked).recovery
    assert done is not None
    assert [part.source for part in done.text.parts] == [str(text_folder), "self"]
    assert done.settings["text"] == [str(text_folder), "self"]
    assert done.zeros_after == done.zeros_before
    before, after = map(tiny.weights_of, (sparse_folder, out))
    assert any(not before[name].equal(after[name]) for name in before)
    assert secateur.check(out, pattern="2:4").complaint is None


def test_self_without_a_dense_model_costs_one_line(sparse_folder: Path, tmp_path: Path) -> None:
    sparse = shutil.copytree(sparse_folder, tmp_path / "sparse")
    (sparse / "run.json").unlink()
    with pytest.raises(RecipeError, match=r"the dense model writes the text.*--dense FOLDER"):
        secateur.recover(**values(sparse, tmp_path / "out", text="self", pattern="2:4"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text": ["self", "self"]}, "text='self' stands twice"),
        ({"text": "self", "shares": "2"}, "shares are those of several text"),
        ({"text": ["self", "builtin"], "shares": "1,2,3"}, "(there are 2)"),
        ({"text": ["a", "b", "c"], "samples": 1, "validation": 1}, "of 3 texts"),
    ],
)
def test_texts_that_do_not_fit_cost_one_line(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recovery.build(values(tmp_path, tmp_path / "out", **changes))
    assert complaint in str(caught.value)


def test_the_command_takes_texts_again_and_again(
    sparse_folder: Path, text_folder: Path, tmp_path: Path, command: tiny.Command
) -> None:
    done = command(
        "recover", sparse_folder, "--text", text_folder, "--text", "self", "--shares", "3,1",
        "--out", tmp_path / "out", "--steps", 1, "--samples", 3, "--validation", 1,
        "--sequence-length", 16, "--batch-size", 1,
    )  # fmt: skip
    assert done.status == 0
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.recovery is not None
    assert [part.sequences for part in record.recovery.text.parts] == [3, 1]
