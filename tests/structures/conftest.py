"""What tests of structures share: models, tokens to choose by, runs that remove and are stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import secateur
import tiny
from secateur.record import RunRecord
from tiny import fingerprint, make_model, make_tokens


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


@pytest.fixture(scope="module")
def folder_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`folder_of(family)` -> a tiny model of it, with what the module's `changes_of` says."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            model = make_model(family, **request.module.changes_of(family))
            made[family] = tiny.save(model, tmp_path_factory.mktemp("dense") / family)
        return made[family]

    return folder


@pytest.fixture
def in_two_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RunRecord, RunRecord]]:
    """`in_two_goes(run, missing, choice)` -> the records of a run as a whole and in two goes.

    `run` writes to `out`; it is stopped at block 2, which `missing` proves first (`Gaps`,
    `Narrowed`), and does not make the choice again by the function of that name. All that it
    writes but the record is the same to the bit.
    """

    def compare(
        run: Callable[[], RunRecord], missing: type[Any], choice: str
    ) -> tuple[RunRecord, RunRecord]:
        out = tmp_path / "out"

        def bits() -> dict[str, str]:
            return {name: value for name, value in fingerprint(out).items() if name != "run.json"}

        whole = run()
        reference = bits()
        shutil.rmtree(out)
        prove = missing.prove

        def stop(self: Any, module: torch.nn.Module, index: int) -> None:
            if index == 2:
                raise KeyboardInterrupt
            prove(self, module, index)

        with monkeypatch.context() as patch:
            patch.setattr(missing, "prove", stop)
            with pytest.raises(KeyboardInterrupt):
                run()
        assert not out.exists()
        with monkeypatch.context() as patch:
            patch.setattr(choice, lambda *args: pytest.fail("scored again"))
            again = run()
        assert bits() == reference
        return whole, again

    return compare
