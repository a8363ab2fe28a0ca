"""`secateur pack` and `unpack` as commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from secateur import cli
from tiny import make_model, save


def command(
    words: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert not leave.value.code
    return capsys.readouterr().out


def test_pack_and_unpack_say_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("llama", dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.view(-1, 4)[:, 2:] = 0
    folder = save(model, tmp_path / "sparse")
    out = command(["pack", folder, "--out", tmp_path / "p"], monkeypatch, capsys)
    assert "21 2:4" in out
    assert "packed matrices take 56." in out
    assert str(tmp_path / "p") in out.replace("\n", "")
    said = command(
        ["unpack", tmp_path / "p", "--out", tmp_path / "u", "--json"], monkeypatch, capsys
    )
    facts = json.loads(said)
    assert facts["forms"]["2:4"] == 21
    assert facts["out"] == str(tmp_path / "u")
    assert facts["matrices_packed"] < 0.58 * facts["matrices_dense"]
    assert facts["after"] - facts["before"] == facts["matrices_dense"] - facts["matrices_packed"]
    again = command(
        ["pack", folder, "--out", tmp_path / "p", "--overwrite", "--json"], monkeypatch, capsys
    )
    assert json.loads(again)["after"] == facts["before"]
