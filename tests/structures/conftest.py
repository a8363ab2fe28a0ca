"""What tests of structures that are removed share: tokens to choose by, and a run that removes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

import secateur
from secateur.record import RunRecord
from tiny import make_tokens


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return make_tokens()


@pytest.fixture(scope="module")
def calibration(tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"input_ids": tokens}, path)
    return str(path)


@pytest.fixture
def remove(dense: Path, calibration: str, tmp_path: Path) -> Callable[..., tuple[Path, RunRecord]]:
    """`remove(pattern, method, **options)` -> the folder of the result, and its record.

    The model is the module's own fixture `dense`.
    """

    def prune(pattern: str, method: str, **options: Any) -> tuple[Path, RunRecord]:
        out = tmp_path / "out"
        values = {"calibration": calibration, "samples": 8, "sequence_length": 32, **options}
        run = secateur.prune(dense, method=method, pattern=pattern, out=out, **values)
        return out, run

    return prune
