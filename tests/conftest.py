"""Fixtures that all tests share; `tiny.py` holds the plain functions: `from tiny import ...`."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from secateur import cli
from secateur.machine import waiting

torch.set_num_threads(1)
waiting.EVERY = 3600.0  # a slow machine adds no line to what a test reads

# A machine with other work to do is no fault of what is tested; and what passed once passes again.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="SECATEUR_FUZZ" not in os.environ,
)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-method", action="store_true", help="prune every family by every method"
    )


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16 with its tokenizer, in one file. Not to be written to."""
    model = tiny.make_model("llama", dtype=torch.bfloat16)
    return tiny.save(model, tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(model, name, **save_pretrained options)` -> a folder with model and tokenizer."""

    def write(model: PreTrainedModel, name: str = "model", **options: object) -> Path:
        return tiny.save(model, tmp_path / name, **options)

    return write


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """Calibration tokens, int64 [8, 32]."""
    return tiny.make_tokens()


@pytest.fixture(scope="session")
def tokens_file(tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokens in a .safetensors file under the name input_ids."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"input_ids": tokens}, path)
    return path


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three .txt files, together long enough for 8 sequences of 32 tokens several times over."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(3):
        turned = tiny.SENTENCES[number:] + tiny.SENTENCES[:number]
        (folder / f"{number}.txt").write_text(" ".join(turned * 3), encoding="utf-8")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tiny.Command:
    """`command("check", folder)`: `secateur check FOLDER` in this process, and its outcome."""

    def call(*arguments: object) -> tiny.Outcome:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return tiny.Outcome(int(leave.value.code or 0), *capsys.readouterr())

    return call
