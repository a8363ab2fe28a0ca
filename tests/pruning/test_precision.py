"""The notice that a processor would compute sooner in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
import tiny
from secateur.machine.device import multiplies_bfloat16
from secateur.pruning import prepare


@pytest.mark.parametrize(
    ("dtype", "weights", "able", "told"),
    [
        ("auto", 0, True, True),
        ("auto", 0, False, False),
        ("auto", 10**9, True, False),  # a small model takes seconds
        ("float32", 0, True, False),  # it was asked for
    ],
)
def test_a_faster_precision_is_offered_where_it_pays(
    dtype: str, weights: int, able: bool, told: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tiny.save(tiny.make_model("llama"), tmp_path / "dense")
    monkeypatch.setattr(prepare, "multiplies_bfloat16", lambda: able)
    monkeypatch.setattr(prepare, "TAKES_MINUTES", weights)
    run = secateur.prune(
        folder, method="magnitude", out=tmp_path / "out", device="cpu", dtype=dtype
    )
    assert any("--dtype bfloat16" in line for line in run.notices) is told
    assert run.dtype == "float32"


def test_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ({"amx_bf16": True}, {"avx512_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda said=said: said, raising=False)
        assert multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16()
