"""One fingerprint: any matrix that is another is noticed, on disk and in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.checkpoint import Checkpoint, ResidentModel, open_model
from secateur.errors import RecipeError
from secateur.packing.layout import PARTS
from tiny import make_model

CPU = torch.device("cpu")
MIDDLE = "model.layers.1.mlp.up_proj.weight"


def with_another(folder: Path, to: Path, name: str = MIDDLE) -> Path:
    """A copy of a model in which one tensor is another."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_every_tensor_counts(llama_folder: Path, tmp_path: Path) -> None:
    prints = {Checkpoint(llama_folder).fingerprint()}
    names = Checkpoint(llama_folder).names
    for number, name in enumerate(names):
        prints.add(
            Checkpoint(with_another(llama_folder, tmp_path / str(number), name)).fingerprint()
        )
    assert len(prints) == len(names) + 1


def test_the_same_files_elsewhere_have_the_same_one(llama_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama_folder, tmp_path / "copy")
    assert Checkpoint(copy).fingerprint() == Checkpoint(llama_folder).fingerprint()
    opened = open_model(copy, CPU, torch.float32)
    assert opened.fingerprint() == Checkpoint(copy).fingerprint()


def test_a_model_in_memory_is_told_by_the_same_rule(llama_folder: Path) -> None:
    def of(seed: int = 0, changed: str | None = None) -> str:
        model = make_model("llama", seed=seed)
        if changed is not None:
            with torch.no_grad():
                parameter = model.get_parameter(changed)
                parameter.copy_(parameter.flip(0))
        return ResidentModel(model, CPU, torch.float32).fingerprint()

    names = [None, *(name for name, _ in make_model("llama").named_parameters())]
    assert len({of(changed=name) for name in names}) == len(names)
    assert of() == of() != of(seed=1)


def test_a_packed_model_is_told_by_what_is_packed(llama_folder: Path, tmp_path: Path) -> None:
    prints = set()
    for folder in (llama_folder, with_another(llama_folder, tmp_path / "other")):
        secateur.prune(folder, method="magnitude", pattern="2:4", out=tmp_path / "sparse")
        secateur.pack(tmp_path / "sparse", tmp_path / "packed")
        checkpoint = Checkpoint(tmp_path / "packed")
        assert MIDDLE in checkpoint.packed
        assert not any(name.endswith(PARTS) for name in checkpoint.names)
        prints.add(checkpoint.fingerprint())
        shutil.rmtree(tmp_path / "sparse")
        shutil.rmtree(tmp_path / "packed")
    assert len(prints) == 2


@pytest.fixture
def options(tokens_file: Path) -> dict[str, Any]:
    return {
        "method": "gblm", "calibration": str(tokens_file), "samples": 8, "sequence_length": 32,
    }  # fmt: skip


def test_gradients_of_a_model_with_another_middle_are_refused(
    llama_folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "gradients.safetensors"
    secateur.prune(llama_folder, out=tmp_path / "first", save_gradients=str(path), **options)
    other = with_another(llama_folder, tmp_path / "other")
    with pytest.raises(RecipeError, match="the gradients have weights"):
        secateur.prune(other, out=tmp_path / "no", gradients=str(path), **options)
    assert not (tmp_path / "no").exists()


def test_gradients_of_a_model_in_memory_with_another_middle_are_refused(
    tokens: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "gradients.safetensors"
    options: dict[str, Any] = {"method": "gblm", "calibration": tokens}
    first = make_model("llama")
    secateur.prune(first, save_gradients=str(path), **options)
    again = make_model("llama")
    secateur.prune(again, gradients=str(path), **options)
    assert torch.equal(again.get_parameter(MIDDLE), first.get_parameter(MIDDLE))
    other = make_model("llama")
    with torch.no_grad():
        other.get_parameter(MIDDLE).neg_()
    with pytest.raises(RecipeError, match="the gradients have weights"):
        secateur.prune(other, gradients=str(path), **options)
