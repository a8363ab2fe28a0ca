"""Gradients on disk: plain safetensors, whole or not there, a matrix in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from secateur.checkpoint import gradient_store
from secateur.checkpoint.gradient_store import GradientFile
from secateur.errors import CheckpointError, OutputError, RecipeError

FACTS = {"format": "secateur/gradients/1", "aggregate": "l2"}
GRADIENTS = {
    f"model.layers.{index}.{kind}.weight": torch.randn(
        8, 4 + index, generator=torch.Generator().manual_seed(index)
    )
    for index in range(3)
    for kind in ("mlp.up_proj", "self_attn.q_proj")
}
SHAPES = {name: (value.shape[0], value.shape[1]) for name, value in GRADIENTS.items()}


def fill(path: Path, one_file: bool) -> None:
    with GradientFile.create(path, FACTS, one_file=one_file) as file:
        for name, value in reversed(GRADIENTS.items()):
            file.write(name, value)
            assert not path.exists()  # until all are there


@pytest.mark.parametrize("one_file", [True, False])
def test_what_was_written_is_read(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "gradients.safetensors"
    fill(path, one_file)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    assert path.is_file() == one_file
    file = GradientFile.open(path, SHAPES, FACTS)
    for name, value in GRADIENTS.items():
        assert torch.equal(file.read(name), value)


def test_one_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "gradients.safetensors"
    fill(path, one_file=True)
    tensors = load_file(path)
    assert tensors.keys() == GRADIENTS.keys()
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == FACTS


@pytest.mark.parametrize("one_file", [True, False])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "gradients.safetensors"

    def fail() -> None:
        with GradientFile.create(path, FACTS, one_file=one_file) as file:
            file.write(*next(iter(GRADIENTS.items())))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("one_file", [True, False])
def test_what_a_killed_run_left_does_not_matter(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "gradients.safetensors"
    left = tmp_path / "gradients.safetensors.d.unfinished"
    left.mkdir()
    (left / "other.safetensors").write_text("half")
    fill(path, one_file)
    assert [there.name for there in tmp_path.iterdir()] == [path.name]
    GradientFile.open(path, SHAPES, FACTS)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        fill(tmp_path / "nowhere" / "gradients", one_file=False)


@pytest.mark.parametrize("one_file", [True, False])
def test_gradients_that_do_not_fit_are_refused(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "gradients"
    fill(path, one_file)
    name = next(iter(SHAPES))
    with pytest.raises(CheckpointError, match="has another shape"):
        GradientFile.open(path, {**SHAPES, name: (9, 9)}, FACTS)
    with pytest.raises(CheckpointError, match="not the gradients of this model"):
        GradientFile.open(path, {**SHAPES, "more": (1, 1)}, FACTS)
    with pytest.raises(RecipeError, match="the gradients have aggregate 'l2'"):
        GradientFile.open(path, SHAPES, {**FACTS, "aggregate": "l1"})
    with pytest.raises(CheckpointError, match="no such file of gradients"):
        GradientFile.open(tmp_path / "none", SHAPES, FACTS)


def test_the_bytes_are_the_librarys() -> None:
    """No header of safetensors is made by hand."""
    source = Path(gradient_store.__file__).read_text(encoding="utf-8")
    assert "data_offsets" not in source
    assert "to_bytes" not in source
