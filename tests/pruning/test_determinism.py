"""The same recipe gives the same bits again, on one thread and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import secateur
from secateur import methods
from tiny import fingerprint, make_model, make_tokens, save


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose matrices are large enough for torch to share them among threads."""
    folder = tmp_path_factory.mktemp("wide")
    sizes: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 2}
    save(make_model("llama", **sizes, initializer_range=0.05), folder / "model")
    save_file({"input_ids": make_tokens(8, 64)}, folder / "tokens.safetensors")
    return {
        "model": folder / "model",
        "calibration": folder / "tokens.safetensors",
        "sequence_length": 64,
        "samples": 8,
    }


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def pruned(wide: dict[str, Any], out: Path, method: str) -> dict[str, str]:
    options = {**wide, "calibration": None} if method == "magnitude" else wide
    run = secateur.prune(**options, method=method, out=out)
    assert f"with {torch.get_num_threads()} threads" in run.repeatable
    assert run.machine["threads"] == str(torch.get_num_threads())
    return {name: bits for name, bits in fingerprint(out).items() if name != "run.json"}


@pytest.mark.parametrize("method", [method.name for method in methods.every()])
def test_the_same_bits_again(
    wide: dict[str, Any], tmp_path: Path, threads: int, method: str
) -> None:
    assert pruned(wide, tmp_path / "a", method) == pruned(wide, tmp_path / "b", method)


def test_threads_do_not_matter_to_magnitude(wide: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is added up there; elsewhere the record tells the number of threads."""
    one = pruned(wide, tmp_path / "one", "magnitude")
    torch.set_num_threads(2)
    try:
        assert pruned(wide, tmp_path / "two", "magnitude") == one
    finally:
        torch.set_num_threads(1)
