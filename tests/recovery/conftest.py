"""What the tests of recovery have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.pruning.pipeline import run_pruning
from secateur.recipe import Recipe


@pytest.fixture(scope="session")
def sparse_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama at 2:4 by magnitude, bfloat16. Not to be written to."""
    out = tmp_path_factory.mktemp("sparse") / "llama"
    run_pruning(Recipe.build({"model": str(llama_folder), "out": str(out), "method": "magnitude"}))
    return out
