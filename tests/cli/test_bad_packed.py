"""A damaged packed folder costs one line: the table of bad input, for packed files.

The contract is that of tests/cli/test_bad_input.py. What is changed and then given a checksum that
fits is what a broken writer, or somebody who means harm, would hand over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from bad_input import BROKEN, Case, Place, check_case, config, content, cut, remove, rename
from secateur.errors import CheckpointError
from tiny import make_model, save

SHARD, INDEX = "packed-00001-of-00001.safetensors", "packed.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"  # 2:4
DOWN = "model.layers.1.mlp.down_proj.weight"  # a bitmask [32, 60]: 4 bits past the end of a row


Change = Callable[[dict[str, Tensor]], object]


def altered(change: Change) -> Callable[[Path], object]:
    """Something done to the tensors of the shard; the index has what is there afterwards."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / SHARD)
        change(tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / SHARD)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = dict.fromkeys(tensors, SHARD)
        (folder / INDEX).write_text(json.dumps(index))

    return rewrite


def put(name: str, place: int, value: int) -> Change:
    """One number of a tensor is another."""

    def change(tensors: dict[str, Tensor]) -> None:
        stored = tensors[name]
        stored = stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored
        assert int(stored.view(-1)[place]) != value
        stored.view(-1)[place] = value

    return change


def signed(name: str, *changes: Change) -> Callable[[Path], object]:
    """Changes, and a checksum that fits them."""

    def change(tensors: dict[str, Tensor]) -> None:
        for each in changes:
            each(tensors)
        digest = xxhash.xxh3_64()
        for part in (tensors[f"{name}.values"], tensors[f"{name}.mask"]):
            digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(tensors[f"{name}.layout"][1:].numpy().tobytes())
        tensors[f"{name}.layout"][0] = int.from_bytes(digest.digest(), "big", signed=True)

    return altered(change)


def replace(name: str, make: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def without(*names: str) -> Callable[[Path], object]:
    return altered(lambda tensors: [tensors.pop(name) for name in names])


def in_index(**facts: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps({**index, **facts}))

    return change


def damaged(*changes: Callable[[Path], object]) -> Callable[[Place], list[object]]:
    """A command that reads a packed folder with something done to it: the pruned one is packed."""
    return lambda place: ["check", place.copy(*changes, of=place.pruned), "--pattern", "50%"]


def packing(model: object, *more: object) -> Callable[[Place], list[object]]:
    return lambda place: ["pack", model, "--out", place.out, *more]


def reserved(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.rope.mask"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")


FACTS = {"format": "secateur-packed", "version": 1}
IMPOSSIBLE = "has an impossible layout"
NEVER_2_OF_4 = "do not keep 2"

PACKED: dict[str, Case] = {
    "truncated": Case(damaged(cut(SHARD, 9)), [BROKEN, SHARD]),
    "a value is another": Case(
        damaged(altered(put(f"{UP}.values", 7, 1))),
        [f"the checksum of packed tensor {UP!r} is wrong", SHARD],
    ),
    "a bit of the mask is another": Case(
        damaged(altered(put(f"{UP}.mask", 7, 0))), ["the checksum of packed tensor"]
    ),
    "another checksum": Case(damaged(altered(put(f"{UP}.layout", 0, 1))), ["the checksum of"]),
    "values in another order": Case(
        damaged(altered(replace(f"{UP}.values", lambda t: t.flip(0)))), ["the checksum of"]
    ),
    "evaluated all the same": Case(
        lambda p: p.evaluate(model=p.copy(altered(put(f"{UP}.values", 7, 1)), of=p.pruned)),
        ["the checksum of packed tensor"],
    ),
    "unpacked all the same": Case(
        lambda p: [
            "unpack",
            p.copy(altered(put(f"{UP}.values", 7, 1)), of=p.pruned),
            "--out",
            p.out,
        ],
        ["the checksum of packed tensor"],
    ),
    "a group of three": Case(
        damaged(signed(UP, put(f"{UP}.mask", 3, 0b0111_0011))), [NEVER_2_OF_4]
    ),
    "a group of one": Case(damaged(signed(UP, put(f"{UP}.mask", 3, 0b0001_0011))), [NEVER_2_OF_4]),
    "bits past the end": Case(
        damaged(signed(DOWN, put(f"{DOWN}.mask", 7, 0b1000_0000))), ["bits past the end of a row"]
    ),
    "more values than bits": Case(
        damaged(signed(DOWN, replace(f"{DOWN}.values", lambda t: torch.cat([t, t[:1]])))),
        [f"packed tensor {DOWN!r} has values of shape", "as the mask says"],
    ),
    "fewer values than bits": Case(
        damaged(signed(DOWN, replace(f"{DOWN}.values", lambda t: t[:-1]))), ["values of shape"]
    ),
    "fewer values than 2:4 has": Case(
        damaged(signed(UP, replace(f"{UP}.values", lambda t: t[:-1]))), [IMPOSSIBLE]
    ),
    "a mask of other bytes": Case(
        damaged(signed(UP, replace(f"{UP}.mask", lambda t: t.view(torch.int8)))), [IMPOSSIBLE]
    ),
    "a mask of one row": Case(
        damaged(signed(UP, replace(f"{UP}.mask", lambda t: t[:1]))), [IMPOSSIBLE]
    ),
    "values that are integers": Case(
        damaged(signed(UP, replace(f"{UP}.values", lambda t: t.view(torch.int16)))), [IMPOSSIBLE]
    ),
    "5 of 4": Case(damaged(signed(UP, put(f"{UP}.layout", 1, 5))), [IMPOSSIBLE, "[5, 4, -1, "]),
    "-2 of 4": Case(damaged(signed(UP, put(f"{UP}.layout", 1, -2))), [IMPOSSIBLE]),
    "1 of 4 with the values of 2 of 4": Case(
        damaged(signed(UP, put(f"{UP}.layout", 1, 1))), [IMPOSSIBLE]
    ),
    "2 of 0": Case(damaged(signed(UP, put(f"{UP}.layout", 2, 0))), [IMPOSSIBLE]),
    "an axis of 3": Case(damaged(signed(UP, put(f"{UP}.layout", 3, 3))), [IMPOSSIBLE]),
    "a shape of a petabyte": Case(
        damaged(signed(DOWN, put(f"{DOWN}.layout", 4, 2**50))), [IMPOSSIBLE]
    ),
    "a negative shape": Case(damaged(signed(DOWN, put(f"{DOWN}.layout", 4, -64))), [IMPOSSIBLE]),
    "a shape of no dimension": Case(
        damaged(signed(UP, replace(f"{UP}.layout", lambda t: t[:4]))), [IMPOSSIBLE]
    ),
    "a layout of fractions": Case(
        damaged(altered(replace(f"{UP}.layout", lambda t: t.double()))), [IMPOSSIBLE]
    ),
    "no mask": Case(damaged(without(f"{UP}.mask")), [f"tensor '{UP}.mask' is missing", SHARD]),
    "no values": Case(damaged(without(f"{UP}.values")), [f"tensor '{UP}.values' is missing"]),
    "no layout": Case(damaged(without(f"{UP}.layout")), [f"weights are missing, such as {UP!r}"]),
    "nothing of a matrix": Case(
        damaged(without(*(f"{UP}.{part}" for part in ("values", "mask", "layout")))),
        [f"weights are missing, such as {UP!r}"],
    ),
    "packed and plain": Case(
        damaged(altered(lambda tensors: tensors.update({UP: torch.zeros(64, 32)}))),
        [f"tensor {UP!r} is packed and plain"],
    ),
    "an index of more than there is": Case(
        damaged(in_index(weight_map={f"{UP}.values": SHARD, "nonsense.layout": SHARD})),
        ["tensor 'nonsense.layout' is in the index but not in its shard"],
    ),
    "a shard is missing": Case(damaged(remove(SHARD)), [f"shard {SHARD} is missing"]),
    "the index is missing": Case(damaged(remove(INDEX)), ["no weights", INDEX]),
    "the index is no JSON": Case(damaged(content(INDEX, "{")), ["not to be read as JSON"]),
    "a later version": Case(
        damaged(in_index(metadata={**FACTS, "version": 2})),
        ["a packed folder of version 2", "wanted version 1", "newer secateur"],
    ),
    "no version": Case(damaged(in_index(metadata=[])), ["a packed folder of version None"]),
    "a configuration of another shape": Case(
        damaged(config(intermediate_size=68)), ["wanted [32, 68], as config.json says"]
    ),
    "renamed to a plain file": Case(
        damaged(rename(SHARD, "model.safetensors"), remove(INDEX)),
        ["says that the weights are packed", f"wanted {INDEX}"],
    ),
    "packed twice": Case(
        lambda p: ["pack", p.pruned, "--out", p.out], ["packed already", "secateur unpack"]
    ),
    "unpacked, but plain": Case(
        lambda p: ["unpack", p.dense, "--out", p.out], ["not packed", "secateur pack"]
    ),
    "packed, but quantised": Case(
        lambda p: packing(p.copy(config(quantization_config={"quant_method": "gptq"})))(p),
        ["the weights are quantised", "wanted float32"],
    ),
    "a tensor with the name of a part": Case(
        lambda p: packing(p.copy(reserved))(p), ["'model.rope.mask' has a name that is kept"]
    ),
    "no such model": Case(lambda p: packing(p.folder / "none")(p), ["no model folder"]),
    "packed into itself": Case(
        lambda p: ["pack", p.dense, "--out", p.dense, "--overwrite"], ["is the model itself"]
    ),
    "packed over a folder": Case(
        lambda p: ["pack", p.dense, "--out", p.pruned], ["is not empty", "--overwrite"]
    ),
    "no --out": Case(lambda p: ["pack", p.dense], ["Missing option", "--out"]),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, packed: one matrix is a bitmask, the others are 2:4."""
    folder = tmp_path_factory.mktemp("packed")
    source = save(
        make_model("llama", dtype=torch.bfloat16, intermediate_size=60), folder / "sparse"
    )
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor.view(-1, 4)[:, 2:] = 0
    tensors[DOWN][torch.rand(tensors[DOWN].shape, generator=generator) < 0.7] = 1.5
    tensors[DOWN][torch.rand(tensors[DOWN].shape, generator=generator) < 0.6] = 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return secateur.pack(source, folder / "packed").out


@pytest.fixture
def place(
    tmp_path: Path, llama_folder: Path, packed: Path, tokens_file: Path, text_folder: Path
) -> Place:
    return Place(tmp_path, llama_folder, packed, tokens_file, text_folder)


@pytest.mark.parametrize("name", PACKED)
def test_bad_packed_input_costs_one_line(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_case(PACKED[name], place, monkeypatch, capsys)


def test_transformers_gets_the_same_line(place: Place) -> None:
    """Before a single weight is loaded, and whoever loads."""
    folder = place.copy(altered(put(f"{UP}.values", 7, 1)), of=place.pruned)
    for load in (AutoModelForCausalLM.from_pretrained, secateur.load):
        with pytest.raises(CheckpointError, match=f"the checksum of packed tensor '{UP}' is wrong"):
            load(folder)


def test_what_only_unpacking_shows_is_an_error_too(place: Place) -> None:
    folder = place.copy(signed(UP, put(f"{UP}.mask", 3, 0b0111_0011)), of=place.pruned)
    with pytest.raises(CheckpointError, match=r"do not keep 2"):
        secateur.load(folder)
