"""`secateur pack` and `unpack` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tiny import Command, make_model, save


def test_pack_and_unpack_say_what_they_did(tmp_path: Path, command: Command) -> None:
    model = make_model("llama", dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.view(-1, 4)[:, 2:] = 0
    folder = save(model, tmp_path / "sparse")
    first = command("pack", folder, "--out", tmp_path / "p")
    assert first.status == 0
    assert "21 2:4" in first.out
    assert "packed matrices take 56." in first.out
    assert str(tmp_path / "p") in first.out.replace("\n", "")
    back = command("unpack", tmp_path / "p", "--out", tmp_path / "u", "--json")
    facts = json.loads(back.out)
    assert facts["forms"]["2:4"] == 21
    assert facts["out"] == str(tmp_path / "u")
    assert facts["matrices_packed"] < 0.58 * facts["matrices_dense"]
    assert facts["after"] - facts["before"] == facts["matrices_dense"] - facts["matrices_packed"]
    again = command("pack", folder, "--out", tmp_path / "p", "--overwrite", "--json")
    assert json.loads(again.out)["after"] == facts["before"]


def test_packing_says_where_there_is_nothing_to_pack(
    tmp_path: Path, llama_folder: Path, command: Command
) -> None:
    done = command("pack", llama_folder, "--out", tmp_path / "p")
    assert done.status == 0
    (said,) = [event["text"] for event in done.events if event["event"] == "notice"]
    assert "no matrix has zeros enough" in said
    assert "(30 dense)" in done.out
