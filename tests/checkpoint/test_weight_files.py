"""The resolver: whatever lies in a folder, what is read is what transformers loads, or nothing."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Checkpoint, load_whole, open_model
from secateur.errors import CheckpointError, SecateurError
from tiny import Command, make_model, save

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED_INDEX = "packed.safetensors.index.json"
TOLD = "model.norm.weight"
"""A tensor whose value tells which file it was read from."""
VALUES = {"single": 1.0, "index": 2.0, "other": 3.0, "extra": 4.0, "packed": 5.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every form of one model; `TOLD` differs between them."""
    root = tmp_path_factory.mktemp("parts")
    model = make_model("llama", num_hidden_layers=1)
    made = {}
    for form in ("single", "index", "other", "packed"):
        with torch.no_grad():
            model.model.norm.weight.fill_(VALUES[form])
        more = {"max_shard_size": "30kB"} if form == "index" else {}
        made[form] = save(model, root / form, **more)
    secateur.pack(made["packed"], root / "really-packed")
    made["packed"] = root / "really-packed"
    made["adapter"] = root / "adapter"
    made["adapter"].mkdir()
    (made["adapter"] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A": torch.ones(2, 32)}, made["adapter"] / "adapter_model.safetensors")
    return made


def assemble(folder: Path, parts: dict[str, Path], combination: dict[str, str]) -> Path:
    """A folder with the parts that a combination asks for."""
    shutil.copytree(parts["single"], folder)
    if combination["single"] == "no":
        (folder / SINGLE).unlink()
    if combination["index"] != "no":
        for path in parts["index"].glob("model*"):
            if path.name == INDEX or combination["index"] == "whole":
                shutil.copy(path, folder)
    if combination["packed"] == "yes":
        for path in parts["packed"].glob("packed*"):
            shutil.copy(path, folder)
        shutil.copy(parts["packed"] / "config.json", folder)
    if combination["adapter"] == "yes":
        for path in parts["adapter"].glob("adapter*"):
            shutil.copy(path, folder)
    if combination["extra"] == "yes":  # a tensor of the index, in another of its shards too
        shards = sorted(folder.glob("model-*"))
        target = shards[-1] if shards else folder / "extra.safetensors"
        tensors = load_file(target) if shards else {}
        copies = {n: torch.full_like(t, VALUES["extra"]) for n, t in told(folder, shards).items()}
        save_file({**tensors, **copies}, target, metadata={"format": "pt"})
    shutil.copy(parts["other"] / SINGLE, folder / "other.safetensors")
    if combination["named"] != "no":
        reconfigure(folder, transformers_weights=combination["named"] + ".safetensors")
    return folder


def told(folder: Path, shards: list[Path]) -> dict[str, torch.Tensor]:
    """What a stray shard repeats: one tensor of the first shard, or the telling one."""
    if not shards:
        return {TOLD: torch.zeros(32)}
    name, tensor = sorted(load_file(shards[0]).items())[0]
    return {name: tensor}


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CHOICES = {
    "single": ("no", "yes"),
    "index": ("no", "whole", "stale"),
    "packed": ("no", "yes"),
    "adapter": ("no", "yes"),
    "extra": ("no", "yes"),
    "named": ("no", "other", "gone"),
}
COMBINATIONS = [
    combination
    for each in itertools.product(*CHOICES.values())
    if (combination := dict(zip(CHOICES, each, strict=True)))
    and (combination["packed"] == "no" or combination["named"] == "no")  # it has that key itself
]


def expected(combination: dict[str, str]) -> str | None:
    """The part that is loaded; None where the folder is refused."""
    if combination["adapter"] == "yes" or combination["named"] == "gone":
        return None
    whole = combination["index"] == "whole"
    if combination["packed"] == "yes":
        plain = combination["single"] == "yes" or combination["index"] != "no"
        return None if plain else "packed"
    if combination["named"] == "other":
        return "other"
    if combination["single"] == "yes":
        return "single"
    return "index" if whole and combination["extra"] == "no" else None


def name_of(combination: dict[str, str]) -> str:
    return "-".join(f"{key}={value}" for key, value in combination.items() if value != "no") or "-"


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_every_combination_is_read_as_transformers_loads_it(
    combination: dict[str, str], parts: dict[str, Path], tmp_path: Path
) -> None:
    folder = assemble(tmp_path / "model", parts, combination)
    part = expected(combination)
    if part is None:
        said = set()
        for read in (
            Checkpoint,
            load_whole,
            secateur.load,
            lambda f: open_model(f, torch.device("cpu")),
        ):
            with pytest.raises(CheckpointError) as refused:
                read(folder)
            said.add(str(refused.value))
        assert len(said) == 1
        assert "\n" not in said.pop()
        return
    checkpoint = Checkpoint(folder)
    value = checkpoint.load([TOLD])[TOLD]
    assert value.unique().item() == VALUES[part]
    assert torch.equal(load_whole(folder).model.norm.weight, value)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).model.norm.weight, value)
    # every file that looks like weights is either read or named as not read
    files = {path for path in folder.iterdir() if ".safetensors" in path.name}
    entrance = {"index": INDEX, "packed": PACKED_INDEX}.get(part)
    assert {*checkpoint.weight_files, *checkpoint.idle_weight_files} == files - {
        folder / str(entrance)
    }


@pytest.fixture(scope="module")
def overlaid(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file that is loaded, beside an index and shards that are not."""
    return assemble(
        tmp_path_factory.mktemp("overlaid") / "model",
        parts,
        {**dict.fromkeys(CHOICES, "no"), "single": "yes", "index": "whole"},
    )


def test_every_command_reads_the_file_that_loads(
    overlaid: Path, tokens_file: Path, tmp_path: Path, command: Command
) -> None:
    text = ("--text", tokens_file, "--sequence-length", 32)
    status, _, err = command("prune", overlaid, "--method", "magnitude", "--out", tmp_path / "out")
    assert status == 0
    assert "weights are read from model.safetensors" in err
    assert load_whole(tmp_path / "out").model.norm.weight.unique().item() == VALUES["single"]
    status, measured, err = command("evaluate", overlaid, *text, "--json")
    assert "and not from model-00001-of-" in err
    alone = shutil.copytree(overlaid, tmp_path / "alone")
    for path in alone.glob("model*"):
        if path.name != SINGLE:
            path.unlink()
    _, expected_, err = command("evaluate", alone, *text, "--json")
    assert "weights are read from" in err  # other.safetensors still lies there
    assert json.loads(measured)["perplexity"] == json.loads(expected_)["perplexity"]
    assert command("pack", overlaid, "--out", tmp_path / "packed").status == 0
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert packed.model.norm.weight.unique().item() == VALUES["single"]


def test_every_command_refuses_an_adapter_in_one_line(
    parts: dict[str, Path], tokens_file: Path, text_folder: Path, tmp_path: Path, command: Command
) -> None:
    combination = {**dict.fromkeys(CHOICES, "no"), "single": "yes", "adapter": "yes"}
    folder, out = assemble(tmp_path / "model", parts, combination), tmp_path / "out"
    lines = set()
    for words in (
        ("prune", folder, "--method", "magnitude", "--out", out),
        ("evaluate", folder, "--text", tokens_file, "--sequence-length", 32),
        ("evaluate", folder, "--tasks", "continuation", "--text", text_folder, "--limit", 2),
        ("check", folder),
        ("pack", folder, "--out", out),
        ("bench", folder),
        ("recover", folder, "--text", tokens_file, "--out", out),
    ):
        status, _, err = command(*words)
        assert status == 2
        lines.add(next(line for line in err.splitlines() if line.startswith("error: ")))
    (line,) = lines
    assert "an adapter lies beside the weights" in line
    assert "merge_and_unload" in line
    assert not out.exists()


Change = Callable[[Path], object]


def in_index(change: Callable[[dict[str, Any]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return rewrite


REFUSED: dict[str, tuple[Change, str]] = {
    "transformers_weights leads out": (
        lambda f: reconfigure(f, transformers_weights="../single/model.safetensors"),
        "names '../single/model.safetensors'",
    ),
    "transformers_weights of a part": (
        lambda f: reconfigure(f, text_config={"transformers_weights": "other.safetensors"}),
        "transformers_weights in a config.json of several parts",
    ),
    "transformers_weights is a number": (
        lambda f: reconfigure(f, transformers_weights=3),
        "transformers_weights in config.json names 3",
    ),
    "transformers_weights is a pickle": (
        lambda f: reconfigure(f, transformers_weights="adapter_model.bin"),
        "names 'adapter_model.bin'",
    ),
    "an empty description of quantised weights": (
        lambda f: reconfigure(f, quantization_config={}),
        "quantization_config is empty",
    ),
    "packed in a later version": (
        lambda f: reconfigure(
            f, quantization_config={"quant_method": "secateur-packed", "version": 2}
        ),
        "a packed folder of version 2",
    ),
    "another configuration": (
        lambda f: reconfigure(f, configuration_files=["config.4.0.0.json"]),
        "configuration_files",
    ),
    "a distributed checkpoint": (
        lambda f: (f / "shard-00001-model-00001-of-00001.safetensors").touch(),
        "distributed checkpoint",
    ),
    "an index without metadata": (in_index(lambda index: index.pop("metadata")), "no metadata"),
    "an index of pickles": (
        in_index(lambda index: index["weight_map"].update(x="pytorch_model.bin")),
        "said to be in 'pytorch_model.bin'",
    ),
    "packed by name alone": (
        lambda f: [(f / INDEX).unlink(), (f / PACKED_INDEX).touch()],
        "packed, and config.json does not say so",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_reads_otherwise_is_refused(
    name: str, parts: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(parts["index"], tmp_path / "model")
    change, said = REFUSED[name]
    change(folder)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint(folder)


def test_a_tensor_that_the_index_does_not_list_is_known_and_kept(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(parts["index"], tmp_path / "model")
    in_index(lambda index: index["weight_map"].pop(TOLD))(folder)
    assert TOLD in Checkpoint(folder).names
    secateur.prune(folder, method="magnitude", out=tmp_path / "out")
    assert Checkpoint(tmp_path / "out").load([TOLD])[TOLD].unique().item() == VALUES["index"]


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer.")])
def test_a_weight_under_two_names_is_refused_by_every_road(
    family: str, prefix: str, tmp_path: Path
) -> None:
    folder = save(make_model(family, num_hidden_layers=1), tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    ends = ("mlp.up_proj.weight", "mlp.c_fc.weight")
    name = next(name for name in sorted(tensors) if name.endswith(ends))
    tensors[name.removeprefix(prefix)] = torch.full_like(tensors[name], 7.0)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    said = set()
    for read in (load_whole, lambda folder: open_model(folder, torch.device("cpu"))):
        with pytest.raises(CheckpointError) as refused:
            read(folder)
        said.add(str(refused.value))
    assert len(said) == 1


def test_a_result_has_its_own_names_for_its_weights(parts: dict[str, Path], tmp_path: Path) -> None:
    """transformers_weights, and a description of weights that are not compressed, stay behind."""
    folder = shutil.copytree(parts["single"], tmp_path / "model")
    (folder / SINGLE).rename(folder / "mine.safetensors")
    described = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "sparsity_config": {"format": "dense", "sparsity_structure": "2:4"},
    }
    for quantised in (None, described):
        reconfigure(folder, transformers_weights="mine.safetensors", quantization_config=quantised)
        secateur.prune(folder, method="magnitude", out=tmp_path / "out", overwrite=True)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert not {"transformers_weights", "quantization_config"} & config.keys()
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert loaded.model.norm.weight.unique().item() == VALUES["single"]
        assert load_whole(folder).model.norm.weight.unique().item() == VALUES["single"]


def test_a_shard_that_is_a_link_out_of_the_folder_is_not_published(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    private = shutil.copy(parts["single"] / SINGLE, tmp_path / "private.safetensors")
    folder = shutil.copytree(parts["single"], tmp_path / "model")
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(private)
    for publish in (
        lambda out: secateur.prune(folder, method="magnitude", out=out),
        lambda out: secateur.pack(folder, out),
    ):
        with pytest.raises(SecateurError, match=r"model.safetensors is a link to"):
            publish(tmp_path / "out")
