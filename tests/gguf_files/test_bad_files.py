"""A GGUF file that is damaged, unknown or no whole model is one line; nothing is built from it."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import secateur
from secateur.checkpoint import locate
from secateur.checkpoint.from_gguf import CACHE
from secateur.errors import CheckpointError, SecateurError
from secateur.gguf import read_header
from tiny import make_model, save

LONGEST = 700
"""Characters of a line at most."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of a tiny Llama in Q8_0."""
    place = tmp_path_factory.mktemp("good")
    model = make_model("llama", dtype=torch.bfloat16, num_hidden_layers=1)
    secateur.pack_gguf(save(model, place / "model"), place / "m.gguf", type="Q8_0")
    return (place / "m.gguf").read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def start_of_data(good: bytes) -> int:
    """Where the tensors begin: after the table of them."""
    return good.index(b"output_norm.weight") + 64


def refused(path: Path, content: bytes) -> str:
    """The line that such a file costs; nothing is left of the attempt."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as fault:
        locate(path)
    line = str(fault.value)
    assert "\n" not in line
    assert len(line) < LONGEST
    assert str(path) in line
    return line


def test_a_file_that_is_cut_off_is_one_line(good: bytes, tmp_path: Path, cache: Path) -> None:
    points = sorted({*range(0, 64, 7), *range(64, len(good), len(good) // 40), len(good) - 40})
    for point in points:
        said = refused(tmp_path / "m.gguf", good[:point])
        assert "wanted" in said, point
    assert not cache.exists()


def test_flipped_bytes_in_the_header_are_one_line_or_harmless(
    good: bytes, tmp_path: Path, cache: Path
) -> None:
    """What the header still says is then a whole model; a wrong letter in a token is not seen."""
    dice = random.Random(0)
    path, built = tmp_path / "m.gguf", 0
    for _ in range(400):
        changed = bytearray(good)
        for _ in range(dice.choice((1, 1, 4))):
            changed[dice.randrange(start_of_data(good))] = dice.randrange(256)
        path.write_bytes(changed)
        began = time.monotonic()
        said = ""
        try:
            read_header(path)
            if built < 25:  # what is read whole takes longer
                built += 1
                locate(path)
        except SecateurError as fault:
            said = str(fault)
        assert "\n" not in said
        assert len(said) < LONGEST
        assert time.monotonic() - began < 30
    assert built == 25
    assert not list(cache.glob("gguf/.*"))


COUNTS = {
    "tensors": (8, 2**60), "keys": (16, 2**63), "many keys": (16, 900_000), "a version": (4, 99),
    "big-endian": (4, 3 << 24),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_not_believed(name: str, good: bytes, tmp_path: Path, cache: Path) -> None:
    at, count = COUNTS[name]
    width = 4 if at == 4 else 8
    changed = good[:at] + count.to_bytes(width, "little") + good[at + width :]
    refused(tmp_path / "m.gguf", changed)


@pytest.mark.parametrize("length", [2**31, 2**40, 2**62, 2**64 - 1])
def test_a_length_is_not_believed(length: int, good: bytes, tmp_path: Path, cache: Path) -> None:
    for what in (b"general.architecture", b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"):
        at = good.index(what)
        key = good[: at - 8] + struct.pack("<Q", length) + good[at:]
        after = at + len(what) + 4 + (0 if b"arch" in what else 4)
        value = good[:after] + struct.pack("<Q", length) + good[after + 8 :]
        for changed in (key, value):
            refused(tmp_path / "m.gguf", changed)


def file_of(place: Path, arch: str = "llama", tensors: int = 1, **values: Any) -> bytes:
    """A small GGUF file that says certain things."""
    writer = gguf.GGUFWriter(place / "made.gguf", arch)
    for key, value in values.items():
        name = key.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for number in range(tensors):
        writer.add_tensor(f"t{number}", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (place / "made.gguf").read_bytes()


SIZES: dict[str, Any] = {
    "llama__context_length": 64, "llama__embedding_length": 32, "llama__block_count": 1,
    "llama__feed_forward_length": 64, "llama__attention__head_count": 4,
    "llama__attention__layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
FILES: dict[str, tuple[Callable[[Path], bytes], list[str]]] = {
    "empty": (lambda p: b"", ["not a GGUF file", "wanted b'GGUF'"]),
    "safetensors": (lambda p: b"\x08" + bytes(99), ["not a GGUF file: it begins with"]),
    "an unknown architecture": (
        lambda p: file_of(p, "lama"), ["architecture 'lama'", "(did you mean 'llama'?)"],
    ),
    "a mixture": (
        lambda p: file_of(p, **SIZES, llama__expert_count=8), ["with experts", "without experts"],
    ),
    "a part": (lambda p: file_of(p, split__count=3), ["one part of 3", "llama-gguf-split --merge"]),
    "an adapter": (
        lambda p: file_of(p, general__type="adapter"), ["of the type 'adapter'", "a whole model"],
    ),
    "a vocabulary": (lambda p: file_of(p, tensors=0, **SIZES), ["a vocabulary without weights"]),
    "a size is missing": (
        lambda p: file_of(p, **{k: v for k, v in SIZES.items() if "feed" not in k}),
        ["llama.feed_forward_length is missing", "fetching the file again"],
    ),
    "a size is text": (
        lambda p: file_of(p, **{**SIZES, "llama__block_count": "one"}), ["block_count is one"],
    ),
    "a size for each block": (
        lambda p: file_of(p, **{**SIZES, "llama__feed_forward_length": [64, 32]}),
        ["feed_forward_length is [64, 32]"],
    ),
    "too many blocks": (
        lambda p: file_of(p, **{**SIZES, "llama__block_count": 2**30}), ["blocks", "at most 1"],
    ),
    "another model's tensors": (
        lambda p: file_of(p, **SIZES), ["token_embd.weight", "whole model"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_whole_model_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    make, said = FILES[name]
    line = refused(tmp_path / "m.gguf", make(tmp_path))
    for part in said:
        assert part in line
    assert not cache.exists() or not any((cache / "gguf").iterdir())


def changed_facts(
    good: bytes, place: Path, *, drop: str | None = None, tensor: str | None = None, **new: Any
) -> bytes:
    """The good file, said otherwise: without a key, without a tensor, or with other values."""
    (place / "good.gguf").write_bytes(good)
    reader = gguf.GGUFReader(place / "good.gguf")
    writer = gguf.GGUFWriter(place / "made.gguf", "llama")
    given = {key.replace("__", "."): value for key, value in new.items()}
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF", "general.architecture")) and key not in (drop, *given):
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], *kinds[1:2])
    for key, value in given.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    for part in reader.tensors:
        if part.name != tensor:
            writer.add_tensor(part.name, np.array(part.data), raw_dtype=part.tensor_type)
    if tensor and tensor not in [part.name for part in reader.tensors]:
        writer.add_tensor(tensor, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (place / "made.gguf").read_bytes()


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor is missing": (
        {"tensor": "blk.0.attn_q.weight"}, r"tensor 'blk.0.attn_q.weight' is not there.*\[32, 32\]",
    ),
    "a bias that is not read": ({"tensor": "blk.0.attn_q.bias"}, r"wanted no such tensor"),
    "another width": ({"llama__feed_forward_length": 32}, "and 2 more are wrong"),
    "scaled frequencies": (
        {"llama__rope__scaling__type": "yarn"}, "scaled by 'yarn'; wanted none or linear",
    ),
    "frequencies of its own": ({"tensor": "rope_freqs.weight"}, "are none of Llama 3's"),
    "an unknown cut": (
        {"tokenizer__ggml__pre": "viking"}, "pre-tokeniser 'viking', which is not known",
    ),
    "no tokens": ({"drop": "tokenizer.ggml.tokens"}, "transformers does not read it"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_the_reader_would_lose_is_refused(
    name: str, good: bytes, tmp_path: Path, cache: Path
) -> None:
    changes, said = CHANGED[name]
    (tmp_path / "m.gguf").write_bytes(changed_facts(good, tmp_path, **changes))
    with pytest.raises(CheckpointError, match=said) as fault:
        locate(tmp_path / "m.gguf")
    assert "\n" not in str(fault.value)
    assert not any((cache / "gguf").iterdir())


def test_what_lies_beside_a_file_is_not_read(good: bytes, tmp_path: Path, cache: Path) -> None:
    for name in (
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "generation_config.json",
    ):
        (tmp_path / name).write_text("{no JSON")
    (tmp_path / "m.gguf").write_bytes(good)
    assert (locate(tmp_path / "m.gguf") / "config.json").is_file()


def test_a_folder_that_is_removed_is_made_again(good: bytes, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(good)
    made = locate(tmp_path / "m.gguf")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "m.gguf").write_bytes(good)
    assert locate(tmp_path / "copy" / "m.gguf") == made
    for path in made.iterdir():
        path.unlink()
    made.rmdir()
    assert locate(tmp_path / "m.gguf") == made
    assert (made / "model.safetensors").is_file()
