"""Gradients on disk: plain safetensors, whole or not there, a matrix in memory at a time."""

from __future__ import annotations

import hashlib
import resource
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
        metadata = file.metadata()
    assert metadata.items() >= FACTS.items()
    for name, value in tensors.items():
        assert metadata[f"sha256 of {name}"] == hashlib.sha256(value.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("one_file", [True, False])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "gradients.safetensors"

    def fail() -> None:
        with GradientFile.create(path, FACTS, one_file=one_file, overwrite=True) as file:
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
    left = tmp_path / ".gradients.safetensors.0a1b2c3d.unfinished"
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


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gradients.safetensors"

    def fill_while_another_comes() -> None:
        with GradientFile.create(path, FACTS, one_file=True) as file:
            file.write(*next(iter(GRADIENTS.items())))
            path.write_text("mine")

    for _ in range(2):  # it came while they were made; it was there before
        with pytest.raises(OutputError, match=r"the file exists .*--overwrite"):
            fill_while_another_comes()
        assert path.read_text() == "mine"
        assert [there.name for there in tmp_path.iterdir()] == [path.name]


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    """The second is refused while the first writes, and the first notices what came after it."""
    path = tmp_path / "gradients.safetensors"
    with GradientFile.create(path, FACTS, one_file=True) as file:
        for name, value in GRADIENTS.items():
            file.write(name, value)
        with pytest.raises(OutputError, match="another run is writing here"):
            fill(path, one_file=True)
    mine = GradientFile.open(path, SHAPES, FACTS)
    name = next(iter(SHAPES))
    assert torch.equal(mine.read(name), GRADIENTS[name])
    other = {**FACTS, "tokens": "others"}
    with GradientFile.create(path, other, one_file=True, overwrite=True) as file:
        for each, value in GRADIENTS.items():
            file.write(each, value + 1)
    others = GradientFile.open(path, SHAPES, {**FACTS, "tokens": "others"})
    assert torch.equal(others.read(name), GRADIENTS[name] + 1)
    with pytest.raises(CheckpointError, match="was replaced by another run"):
        GradientFile(path, {**FACTS, "tokens": "mine"}).read(name)


@pytest.mark.parametrize("one_file", [True, False])
def test_a_full_disk_is_one_line(tmp_path: Path, one_file: bool) -> None:
    """No file is written through memory that the system cannot give back as a fault."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written.*freeing space"):
            fill(tmp_path / "gradients.safetensors", one_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_the_librarys() -> None:
    """No header of safetensors is made by hand."""
    source = Path(gradient_store.__file__).read_text(encoding="utf-8")
    assert "data_offsets" not in source
    assert "to_bytes" not in source
