"""The source is the same at the end as at the start, and what is kept is what was written."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.blocks import sweep
from secateur.checkpoint import Checkpoint
from secateur.checkpoint import open as opening
from secateur.checkpoint.naming import NotStreamableError
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.errors import CheckpointError, SecateurError
from secateur.progress import Quiet
from tiny import make_model, save

WIDTH = 512
"""Inputs of the largest matrices: wide enough for bytes that the quick fingerprint leaves out."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embeddings and matrices are larger than what the fingerprint samples."""
    model = make_model("llama", hidden_size=128, intermediate_size=WIDTH, dtype=torch.bfloat16)
    return save(model, tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture
def options(source: Path, tokens_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": shutil.copytree(source, tmp_path / "model"),
        "method": "wanda",
        "calibration": tokens_file,
        "sequence_length": 32,
        "samples": 4,
        "out": tmp_path / "out",
    }


def unsampled(folder: Path, name: str) -> tuple[Path, int]:
    """File and position of a byte of a tensor that the quick fingerprint does not look at."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
    step = max(4096, (end - begin) // 16)
    assert step > 4096
    return path, 8 + length + begin + 4096 + 100


def change(folder: Path, name: str, *, keep_times: bool = True) -> None:
    """Change one weight in place; the file's time is put back."""
    before = Checkpoint(folder).fingerprint()
    path, position = unsampled(folder, name)
    told = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    if keep_times:
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert Checkpoint(folder).fingerprint() == before  # it takes more to see it


def gate(block: int) -> str:
    return f"model.layers.{block}.mlp.gate_proj.weight"


class At(Quiet):
    """Does something when a block was pruned."""

    def __init__(self, block: int, do: Callable[[], object]) -> None:
        self.at, self.do = block, do

    def block(self, **facts: Any) -> None:
        if facts.get("block") == self.at and "sparsity" in facts:
            self.do()


@contextmanager
def stopped(at: int) -> Any:
    real = sweep.new_weights

    def new_weights(block: Any, *args: Any) -> Any:
        if block.index == at:
            raise KeyboardInterrupt
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("keep_times", [False, True])
def test_a_source_that_changes_while_a_run_lasts(
    options: dict[str, Any], tmp_path: Path, block: int, keep_times: bool
) -> None:
    at = At(0, lambda: change(options["model"], gate(block), keep_times=keep_times))
    with pytest.raises(CheckpointError, match=r"was changed while|is not what it was") as caught:
        secateur.prune(**options, progress=at)
    assert "\n" not in str(caught.value)
    assert not options["out"].exists()


@pytest.mark.parametrize("block", [0, 2])
def test_a_source_that_changes_before_a_run_goes_on(options: dict[str, Any], block: int) -> None:
    with stopped(1):
        secateur.prune(**options)
    change(options["model"], gate(block))
    with pytest.raises(CheckpointError, match=r"(changed after|is not what it was).*--restart"):
        secateur.prune(**options)
    assert not options["out"].exists()
    assert secateur.prune(**options, restart=True).sparsity == 0.5


def test_a_file_that_was_read_whole_may_have_other_times(options: dict[str, Any]) -> None:
    """Held-out text has passed through every block, so that there are digests to compare with."""
    options |= {"text": str(options["calibration"]), "windows": 2}
    path = options["model"] / "model.safetensors"
    with stopped(2):
        secateur.prune(**options)
    state = options["out"].parent / ".out.partial" / "state"
    kept = [read_facts(state / f"block-{number:05d}.json")["source"] for number in range(2)]
    assert kept[0].keys() | kept[1].keys() >= {gate(0), gate(1), gate(2)}
    surroundings = set(load_file(path)) - kept[0].keys() - kept[1].keys()
    assert not surroundings
    path.touch()
    assert secateur.prune(**options).sparsity == 0.5


def test_the_configuration_counts_too(options: dict[str, Any]) -> None:
    path = options["model"] / "config.json"
    at = At(0, lambda: path.write_text(path.read_text() + " "))
    with pytest.raises(CheckpointError, match=r"config\.json was changed while the run lasted"):
        secateur.prune(**options, progress=at)
    assert not options["out"].exists()


def test_a_model_that_was_loaded_whole(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise NotStreamableError

    monkeypatch.setattr(opening, "StreamedModel", refuse)
    with stopped(1):
        secateur.prune(**options)
    change(options["model"], gate(2))
    with pytest.raises(CheckpointError, match="is not what it was when it was first read"):
        secateur.prune(**options)


def test_the_record_says_which_source_it_was(options: dict[str, Any], source: Path) -> None:
    first = secateur.prune(**options).source_files
    assert list(first) == ["config.json", "model.safetensors"]
    files = Checkpoint(source).source
    files.read_all()
    assert files.sums() == first
    assert secateur.check(options["out"], source=source).complaint is None
    change(options["model"], gate(1))
    complaint = secateur.check(options["out"], source=options["model"]).complaint
    assert complaint == "not the source that it was made from: model.safetensors"
    with pytest.raises(CheckpointError, match="no run record that says which source"):
        secateur.check(source, source=source)
    changed = secateur.prune(**options, overwrite=True).source_files
    assert changed.keys() == first.keys()
    assert changed != first


def test_gradients_of_a_model_with_one_other_weight(options: dict[str, Any]) -> None:
    options |= {"method": "gblm"}
    path = options["out"].with_name("gradients.safetensors")
    secateur.prune(**options, save_gradients=str(path))
    shutil.rmtree(options["out"])
    change(options["model"], gate(1))
    with pytest.raises(CheckpointError, match="is not what it was when it was first read"):
        secateur.prune(**options, gradients=str(path))
    assert not options["out"].exists()


def test_packing_notices(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["method"], options["calibration"] = "magnitude", None
    secateur.prune(**options)
    sparse, real = options["out"], Checkpoint.load

    def load(self: Checkpoint, names: Any) -> Any:
        loaded = real(self, names)
        (sparse / "config.json").touch()
        return loaded

    monkeypatch.setattr(Checkpoint, "load", load)
    with pytest.raises(CheckpointError, match="was changed while"):
        secateur.pack(sparse, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


# --- what is kept of an unfinished run ---


def flip(path: Path, position: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def other_record(state: Path) -> None:
    facts = read_facts(state / "block-00000.json")
    write_facts(state / "block-00000.json", {**facts, "record": {"index": "none"}})


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: flip(state.parent / "model-00002-of-00004.safetensors"),
        lambda state: flip(state / "stream-00002.safetensors"),
        lambda state: (state / "block-00001.json").write_text(
            (state / "block-00000.json").read_text()
        ),
        lambda state: (state / "identity.json").unlink(),
        lambda state: (state / "block-00000.json").write_text("[" * 100_000),
        other_record,
    ],
)
def test_what_was_damaged_is_not_believed(
    options: dict[str, Any], damage: Callable[[Path], object]
) -> None:
    with stopped(2):
        secateur.prune(**options)
    damage(options["out"].parent / ".out.partial" / "state")
    with pytest.raises(SecateurError, match="--restart") as caught:
        secateur.prune(**options)
    assert "\n" not in str(caught.value)
    assert not options["out"].exists()


def test_what_is_no_finished_shard_is_written_again(options: dict[str, Any]) -> None:
    with stopped(2):
        secateur.prune(**options)
    partial = options["out"].parent / ".out.partial"
    for name in ("config.json", "tokenizer.json", "model-00001-of-00004.safetensors", "new.txt"):
        (partial / name).write_text("{}")
    secateur.prune(**options)
    assert secateur.check(options["out"]).complaint is None
    assert not (options["out"] / "new.txt").exists()


def test_damaged_gradients_are_not_believed(options: dict[str, Any]) -> None:
    options["method"] = "gblm"
    with stopped(0):
        secateur.prune(**options)
    folder = options["out"].parent / ".out.partial" / "state" / "gradients"
    flip(next(folder.glob("*layers.1.mlp.gate_proj*")))
    with pytest.raises(CheckpointError, match="is not as it was written"):
        secateur.prune(**options)
