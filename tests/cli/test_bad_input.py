"""A wrong argument costs one line: every bad input, through the real command.

Each case must leave with its exit status and one line on standard error that says what was wrong,
where, and what was wanted or what to try; and nothing may be left behind, nor the source touched.
`pytest -rP tests/cli/test_bad_input.py` prints every line, to be read by a person.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPTNeoConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import secateur
from bad_input import (
    BROKEN,
    Case,
    Place,
    check_case,
    config,
    content,
    cut,
    files_of_5_kB,
    remove,
    rename,
    run,
)
from tiny import BLOCKS, make_model, make_tokens

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST = "model-00001-of-00003.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
IDS = torch.arange(20).view(2, 10)


# --- what is done to a model folder ---


def weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def spoil(name: str, value: float) -> Callable[[Path], object]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[5] = value

    return weights(change)


def header(claims: dict[str, Any], data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file with a header of one's own."""
    text = json.dumps(claims).encode()
    return len(text).to_bytes(8, "little") + text + data


def shards(folder: Path) -> None:
    """Turn a folder's single file into three shards and their index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        some = {name: tensors[name] for name in names[number::3]}
        save_file(some, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(some, file))
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def in_index(name: str, file: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = file
        (folder / INDEX).write_text(json.dumps(index))

    return change


def link(name: str, target: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(str(target))

    return change


def record(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "run.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, **changes}))

    return change


def settings_of_stage(settings: dict[str, Any]) -> Callable[[Path], object]:
    """A run record whose one stage had these settings."""

    def change(folder: Path) -> None:
        path = folder / "run.json"
        facts = json.loads(path.read_text())
        facts["stages"][0]["settings"] = settings
        path.write_text(json.dumps(facts))

    return change


def bad_model(*changes: Callable[[Path], object]) -> Callable[[Place], list[object]]:
    return lambda place: place.prune(model=place.copy(*changes))


def bad_shards(*changes: Callable[[Path], object]) -> Callable[[Place], list[object]]:
    return lambda place: place.prune(model=place.copy(shards, *changes))


def options(*arguments: object) -> Callable[[Place], list[object]]:
    return lambda place: place.prune(*arguments)


def occupied(place: Place) -> Path:
    folder = place.folder / "full"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    return folder


def encoder(place: Place) -> Path:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    return place.model(BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=2, vocab_size=128)))


def both(place: Place) -> Path:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return place.model(T5ForConditionalGeneration(T5Config(**sizes, vocab_size=128)))


def squares(place: Place) -> Path:
    """GPT-Neo keeps a table of positions by positions: gigabytes, if one asks for them."""
    sizes = {"hidden_size": 32, "num_layers": 2, "attention_types": [[["global"], 2]]}
    small = GPTNeoConfig(**sizes, num_heads=4, vocab_size=128, max_position_embeddings=64)
    folder = place.model(AutoModelForCausalLM.from_config(small))
    config(max_position_embeddings=33_000)(folder)
    return folder


def gradients(place: Place, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Full-model gradients that an earlier run kept, with something done to them."""
    path = place.folder / "gradients.safetensors"
    secateur.prune(
        place.dense, method="gblm", calibration=place.tokens, sequence_length=32,
        out=place.folder / "earlier", save_gradients=str(path),
    )  # fmt: skip
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))["__metadata__"]
    facts = {key: value for key, value in facts.items() if not key.startswith("sha256 of ")}
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=facts)
    return path


def tokenizer_of_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    facts = {**json.loads(path.read_text()), "tokenizer_class": "Own"}
    facts["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    path.write_text(json.dumps(facts))
    (folder / "own.py").write_text("class Own: pass")


def sentencepiece_model(folder: Path) -> None:
    """What is left where a model has sentencepiece's own file only."""
    remove("tokenizer.json")(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e")


def words_only(folder: Path) -> None:
    """A tokenizer without a token for a word that it does not know."""
    tokenizer = Tokenizer(models.WordLevel({"heron": 0}, unk_token="<none>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')


def truncated_parquet(place: Place) -> list[object]:
    path = place.folder / "cut.parquet"
    pq.write_table(pa.table({"text": ["a"] * 100}), path)
    path.write_bytes(b"PAR1" + b"\x01" * 40 + path.read_bytes()[-300:])
    return place.prune(calibration=path)


KNOWN = "the configuration is not one that transformers knows"

COMMAND_LINE: dict[str, Case] = {
    "an unknown command": Case(lambda p: ["nonsense"], ["nonsense"]),
    "a flag misspelt": Case(lambda p: ["prune", "--patern", "2:4"], ["--patern", "--pattern"]),
    "a word for a number": Case(lambda p: ["prune", "m", "--samples", "many"], ["--samples"]),
    "a word for a share": Case(
        lambda p: ["recover", "m", "--text", "t", "--out", "o", "--weight-decay", "x"],
        ["--weight-decay x, wanted a number"],
    ),
    "a word for a report's format": Case(
        lambda p: ["report", p.pruned, "--format", "pdf"], ["unknown format 'pdf'", "markdown"]
    ),
    "recover to nowhere": Case(lambda p: ["recover", "m", "--text", "t"], ["--out"]),
    "two faults of recover": Case(
        lambda p: ["recover", "m", "--text", "t", "--out", "o", "--rank", 0, "--gradient-norm", 0],
        ["2 faults in the options of recover", "--rank 0", "--gradient-norm 0"],
    ),
    "a matrix without a pattern": Case(
        lambda p: p.prune("--patterns", "q_proj"), ["--patterns 'q_proj'", "REGEX=PATTERN"]
    ),
    "no pattern for a matrix": Case(
        lambda p: p.prune("--patterns", "q_proj=abc"), ["'abc' cannot be read"]
    ),
    "check without a model": Case(lambda p: ["check"], ["Missing argument"]),
    "check of two models": Case(lambda p: ["check", "a", "b"], ["b"]),
    "prune without a model": Case(lambda p: ["prune", "--out", "x"], ["MODEL is missing"]),
    "evaluate without a text": Case(lambda p: ["evaluate", p.dense], ["--text"]),
}

OPTIONS: dict[str, Case] = {
    "method misspelt": Case(options("--method", "wnada"), ["did you mean 'wanda'?"]),
    "3:7": Case(options("--pattern", "3:7"), ["groups of 7 do not divide the 32 inputs"]),
    "16:64": Case(options("--pattern", "16:64"), ["groups of 64", "in model.layers.0"]),
    "0%": Case(options("--pattern", "0%"), ["prunes 0 %", "more than 0 %"]),
    "100%": Case(options("--pattern", "100%"), ["prunes 100 %", "less than 100 %"]),
    "50 without its sign": Case(options("--pattern", "50"), ["50% (with the percent sign)"]),
    "1% of 32": Case(options("--pattern", "1%"), ["prunes 0 of 32 weights of every row"]),
    "4:2": Case(options("--pattern", "4:2"), ["keeps 4 of 2", "0 < N < M"]),
    "0:4": Case(options("--pattern", "0:4"), ["keeps 0 of 4"]),
    "4:4": Case(options("--pattern", "4:4"), ["keeps 4 of 4"]),
    "no pattern": Case(options("--pattern", "abc"), ["cannot be read; wanted a ratio such as 50%"]),
    "an empty pattern": Case(options("--pattern", ""), ["pattern '' cannot be read"]),
    "a minus": Case(options("--pattern", "-0.5"), ["cannot be read"]),
    "nan%": Case(options("--pattern", "nan%"), ["cannot be read"]),
    "no samples": Case(options("--samples", "0"), ["--samples 0, wanted at least 1"]),
    "more tokens than the model allows": Case(
        options("--sequence-length", "65"),
        ["sequences of 65 tokens", "at most 64", "try --sequence-length 64"],
    ),
    "one token": Case(
        options("--sequence-length", "1"), ["--sequence-length 1, wanted at least 2"]
    ),
    "no batch": Case(options("--batch-size", "0"), ["--batch-size 0"]),
    "a negative seed": Case(options("--seed", "-1"), ["--seed -1"]),
    "int8": Case(options("--dtype", "int8"), ["--dtype int8", "float32"]),
    "a GPU too many": Case(options("--device", "cuda:77"), ["'cuda:77' is not there", "cpu"]),
    "a toaster": Case(options("--device", "toaster"), ["device 'toaster' is not there"]),
    "meta": Case(options("--device", "meta"), ["device 'meta' is not there"]),
    "--set alpha": Case(options("--set", "alpha"), ["NAME=VALUE"]),
    "--set =3": Case(options("--set", "=3"), ["NAME=VALUE"]),
    "--set of another method": Case(options("--set", "alpha=3"), ["'parameters.alpha'"]),
    "--set a.b": Case(options("--set", "a.b=3"), ["wanted NAME or regional.NAME"]),
    "--set regional": Case(options("--set", "regional.rounds=3"), ["no regional optimiser"]),
    "--set variant": Case(options("--set", "variant=true"), ["which pattern 2:4 fixes"]),
    "no --out": Case(lambda p: p.prune(out=None), ["--out FOLDER"]),
    "no --calibration": Case(lambda p: p.prune(calibration=None), ["give --calibration"]),
    "gradients for wanda": Case(options("--gradients", "g"), ["leave --gradients out"]),
    "gradients read and kept": Case(
        lambda p: p.prune("--gradients", "g", "--save-gradients", "h", method="gblm"),
        ["leave --save-gradients out"],
    ),
    "experts of a dense model": Case(options("--route-all"), ["no experts", "no --route-all"]),
    "two rates": Case(
        lambda p: p.prune(
            "--set", "regional.step=1", "--set", "regional.learning_rate=1", method="wanda++"
        ),
        ["leave one out"],
    ),
}

RECIPES: dict[str, Case] = {
    "no such recipe": Case(options("--recipe", "none.yaml"), ["no such recipe file"]),
    "a recipe that is a folder": Case(lambda p: p.prune("--recipe", p.texts), ["not a YAML file"]),
    "an unknown key": Case(
        lambda p: p.recipe("sampels: 3\n"), ["unknown key 'sampels'", "did you mean 'samples'"]
    ),
    "an unknown parameter": Case(
        lambda p: p.recipe("parameters: {compair: row}\n"), ["'parameters.compair'", "competition"]
    ),
    "a recipe that is a list": Case(lambda p: p.recipe("[1, 2]"), ["the file holds a list"]),
    "an empty recipe": Case(lambda p: p.recipe(""), ["the file holds nothing"]),
    "not YAML": Case(lambda p: p.recipe("model: [unclosed"), ["not a YAML file", "recipe.yaml"]),
    "Latin-1": Case(
        lambda p: p.prune("--recipe", p.file("r.yaml", b"model: \xe9")), ["not a YAML file"]
    ),
    "a recipe that names code": Case(
        lambda p: p.recipe("method: !!python/object/apply:os.system ['echo']"), ["not a YAML file"]
    ),
    "a recipe that trusts code": Case(
        lambda p: p.recipe("trust_remote_code: true\n"), ["a recipe file cannot trust code"]
    ),
    "a huge recipe": Case(lambda p: p.recipe("#" * 2_000_000), ["2000000 bytes"]),
    "parameters that are no mapping": Case(
        lambda p: p.prune(
            "--recipe", p.file("r.yaml", "parameters: [1]"), "--set", "variant=false"
        ),
        ["parameters=[1], wanted settings by their names"],
    ),
    "aliases that unfold to gigabytes": Case(
        lambda p: p.recipe(
            "parameters:\n  a: &a [x, x]\n"
            + "".join(f"  {b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij"))
        ),
        ["anchors and aliases are not read"],
    ),
    "a key twice": Case(lambda p: p.recipe("samples: 8\nsamples: 9\n"), ["'samples' stands twice"]),
    "lists in lists": Case(
        lambda p: p.recipe(f"parameters: {'[' * 200}{']' * 200}"), ["levels", "wanted"]
    ),
    "a number without end": Case(lambda p: p.recipe(f"samples: {'9' * 5000}"), ["not a YAML file"]),
    "many faults": Case(
        lambda p: p.recipe("samples: 0\nseed: -1\nnonsense: 1\n"), ["3 faults in", "recipe.yaml"]
    ),
}

MODELS: dict[str, Case] = {
    "no such folder": Case(lambda p: p.prune(model=p.folder / "no"), ["no model folder", "wanted"]),
    "no such hub model": Case(
        lambda p: p.prune(model="nobody/nothing"), ["could be fetched from the hub", "try"]
    ),
    "a file": Case(lambda p: p.prune(model=p.tokens), ["no model folder"]),
    "an empty folder": Case(lambda p: p.prune(model=empty(p)), ["no config.json", "wanted"]),
    "no config": Case(bad_model(remove("config.json")), ["no config.json"]),
    "config is no JSON": Case(bad_model(content("config.json", "{")), ["not to be read as JSON"]),
    "config is a list": Case(bad_model(content("config.json", "[]")), ["a JSON list"]),
    "config is binary": Case(bad_model(content("config.json", b"\xff\0")), ["config.json"]),
    "config is deep": Case(bad_model(content("config.json", "[" * 10**5)), ["config.json"]),
    "config without a type": Case(bad_model(content("config.json", "{}")), [KNOWN, "config.json"]),
    "a word for a width": Case(
        bad_model(config(hidden_size="x")), [KNOWN, "what a llama of this transformers may have"]
    ),
    "an unknown kind of rotary table": Case(
        bad_model(config(rope_parameters={"rope_type": "relu", "rope_theta": 1e4})), ["relu"]
    ),
    "unknown architecture": Case(bad_model(config(model_type="perceptron9000")), [KNOWN]),
    "no language model": Case(
        bad_model(config(model_type="hubert", architectures=["HubertModel"])),
        ["'hubert' is no causal language model"],
    ),
    "a classifier's weights are not there": Case(
        bad_model(config(model_type="vit", architectures=["ViTModel"])),
        ["weights are missing, such as 'classifier.bias'"],
    ),
    "an encoder": Case(lambda p: p.prune(model=encoder(p)), ["sees ahead (BertForMaskedLM)"]),
    "an encoder and decoder": Case(
        lambda p: p.prune(model=both(p)), ["'t5' is no causal language model"]
    ),
    "quantised": Case(
        bad_model(config(quantization_config={"quant_method": "gptq", "bits": 4})),
        ["the weights are quantised", "wanted float32"],
    ),
    "float8": Case(
        bad_model(weights(lambda t: t.update(x=torch.zeros(4).to(torch.float8_e4m3fn)))),
        ["tensor 'x' is stored as F8_E4M3", "unquantised"],
    ),
    "hidden size as a word": Case(bad_model(config(hidden_size="wide")), ["config.json"]),
    "no heads": Case(bad_model(config(num_attention_heads=0)), ["config.json"]),
    "a negative vocabulary": Case(bad_model(config(vocab_size=-5)), ["config.json"]),
    "a vocabulary beyond 64 bits": Case(bad_model(config(vocab_size=2**70)), ["config.json"]),
    "an unknown activation": Case(bad_model(config(hidden_act="nonsense")), ["nonsense"]),
    "no blocks": Case(bad_model(config(num_hidden_layers=0)), ["hidden layers"]),
    "a billion blocks": Case(
        bad_model(config(num_hidden_layers=10**9)),
        ["1000000000 in num_hidden_layers", "30 tensors"],
    ),
    "gigabytes of tables": Case(lambda p: p.prune(model=squares(p)), ["bytes of tables"]),
    "deeper config": Case(
        bad_model(config(num_hidden_layers=BLOCKS + 1)), ["9 weights are missing, such as"]
    ),
    "wider config": Case(
        bad_model(config(intermediate_size=68)), ["wanted [32, 68], as config.json says"]
    ),
    "no weights": Case(bad_model(remove(WEIGHTS)), ["no weights", "wanted model.safetensors"]),
    "pickled weights": Case(
        bad_model(rename(WEIGHTS, "pytorch_model.bin")),
        ["only pickled weights, which can run code", "try converting", "python -c"],
    ),
    "weights are empty": Case(bad_model(content(WEIGHTS, b"")), [BROKEN]),
    "weights are truncated": Case(bad_model(cut(WEIGHTS, 10)), [BROKEN, WEIGHTS]),
    "weights are a zip": Case(bad_model(content(WEIGHTS, b"PK\3\4" + b"pickle" * 99)), [BROKEN]),
    "a header of 4 EB": Case(
        bad_model(content(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}")), [BROKEN]
    ),
    "a header that is no JSON": Case(
        bad_model(content(WEIGHTS, (4).to_bytes(8, "little") + b"{{{{")), [BROKEN]
    ),
    "a tensor beyond the file": Case(
        bad_model(
            content(WEIGHTS, header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}))
        ),
        [BROKEN],
    ),
    "tensors on top of each other": Case(
        bad_model(
            content(
                WEIGHTS,
                header({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "xy"}),
            )
        ),
        [BROKEN],
    ),
    "a shape that does not fill its place": Case(
        bad_model(
            content(WEIGHTS, header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}))
        ),
        [BROKEN],
    ),
    "a weight is missing": Case(
        bad_model(weights(lambda t: t.pop(UP))), [f"1 weights are missing, such as {UP!r}"]
    ),
    "the head is missing": Case(
        bad_model(weights(lambda t: t.pop("lm_head.weight"))), ["such as 'lm_head.weight'"]
    ),
    "a misshapen weight": Case(
        bad_model(weights(lambda t: t.update({"model.norm.weight": torch.ones(31)}))),
        ["tensor 'model.norm.weight' has shape [31]", "wanted [32]"],
    ),
    "a weight under two names": Case(
        bad_model(weights(lambda t: t.update({UP.removeprefix("model."): t[UP].clone()}))),
        ["are both 'model.layers.1.mlp.up_proj.weight'", "wanted every weight once"],
    ),
    "a shard is missing": Case(bad_shards(remove(FIRST)), [f"shard {FIRST} is missing"]),
    "a shard is truncated": Case(bad_shards(cut(FIRST, 10)), [BROKEN, FIRST]),
    "a shard is empty": Case(bad_shards(content(FIRST, b"")), [BROKEN, FIRST]),
    "the index is no JSON": Case(bad_shards(content(INDEX, "{")), ["not to be read", INDEX]),
    "the index is a list": Case(bad_shards(content(INDEX, "[]")), ["a JSON list", INDEX]),
    "the index is no text": Case(bad_shards(content(INDEX, b"\xff\xfe\0")), ["not to be read"]),
    "the index is deep": Case(bad_shards(content(INDEX, "[" * 10**5)), ["not to be read"]),
    "an index without a map": Case(bad_shards(content(INDEX, '{"m": {}}')), ["no weight_map"]),
    "an index of a list": Case(bad_shards(content(INDEX, '{"weight_map": []}')), ["no weight_map"]),
    "an index of nothing": Case(
        bad_shards(content(INDEX, '{"weight_map": {}}')), ["no weight_map"]
    ),
    "the index names what is not there": Case(
        bad_shards(in_index("model.ghost", FIRST)),
        ["tensor 'model.ghost' is in the index but not in its shard"],
    ),
    "the index names a number": Case(bad_shards(in_index(UP, 3)), ["is said to be in 3"]),
    "the index leads up": Case(
        bad_shards(in_index(UP, "../outside.safetensors")), ["'../outside.safetensors'", "wanted"]
    ),
    "the index leads to the root": Case(
        bad_shards(in_index(UP, "/etc/passwd")), ["said to be in '/etc/passwd'"]
    ),
    "the index leads down and up": Case(
        bad_shards(in_index(UP, "a/../../x.safetensors")), ["said to be in 'a/../../x.safe"]
    ),
    "the index leads to a folder": Case(bad_shards(in_index(UP, "..")), ["said to be in '..'"]),
    "the index leads to a NUL": Case(bad_shards(in_index(UP, "a\0b")), [r"'a\x00b'"]),
    "a link to a private file": Case(
        bad_model(link("LICENSE", "/etc/hostname")), ["LICENSE is a link to", "wanted files"]
    ),
}


def empty(place: Place) -> Path:
    (place.folder / "empty").mkdir()
    return place.folder / "empty"


NUMBERS: dict[str, Case] = {
    "a NaN": Case(
        bad_model(spoil("model.layers.0.mlp.down_proj.weight", float("nan"))),
        ["weights are not finite in model.layers.0.mlp.down_proj.weight"],
    ),
    "an infinity": Case(
        bad_model(spoil("model.layers.0.self_attn.q_proj.weight", float("-inf"))),
        ["weights are not finite in model.layers.0.self_attn.q_proj.weight"],
    ),
    "a NaN in a norm": Case(
        bad_model(spoil("model.layers.0.input_layernorm.weight", float("nan"))),
        ["weights are not finite in model.layers.0.input_layernorm.weight"],
    ),
    "a NaN in the embedding": Case(
        bad_model(spoil("model.embed_tokens.weight", float("nan"))),
        ["weights are not finite in model.embed_tokens.weight"],
    ),
    "a NaN in the head, without calibration": Case(
        lambda p: p.prune(
            model=p.copy(spoil("lm_head.weight", float("nan"))),
            method="magnitude",
            calibration=None,
        ),
        ["weights are not finite in lm_head.weight"],
    ),
    "activations beyond float16": Case(
        lambda p: p.prune(
            model=p.copy(
                weights(lambda t: t["model.layers.0.input_layernorm.weight"].fill_(60000.0))
            ),
            dtype="float16",
        ),
        ["not finite in"],
    ),
    "a loss that is not finite": Case(
        lambda p: p.prune(model=p.copy(spoil("lm_head.weight", float("inf"))), method="gblm"),
        ["not finite in"],
    ),
    "an optimiser that runs away": Case(
        lambda p: p.prune(
            "--preset", "paper", "--set", "regional.learning_rate=1e30", method="wanda++"
        ),
        ["in block 0", "regional.learning_rate"],
    ),
    "gradients that are not finite": Case(
        lambda p: p.prune(
            "--gradients",
            gradients(p, lambda t: t["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))),
            method="gblm",
        ),
        ["full_gradient is not finite in model.layers.0.mlp.up_proj.weight"],
    ),
    "a model that cannot be measured": Case(
        lambda p: p.evaluate(model=p.copy(spoil("lm_head.weight", float("nan")))),
        ["the likelihood is not finite", "in window 0"],
    ),
    "a perplexity beyond numbers": Case(
        lambda p: p.evaluate(model=p.copy(weights(lambda t: t["lm_head.weight"].mul_(1e6)))),
        ["the likelihood is not finite, or next to nothing in window 0"],
    ),
    "a dense model that cannot be measured": Case(
        lambda p: p.evaluate("--against", p.copy(spoil("lm_head.weight", float("nan")))),
        ["the likelihood is not finite", "in window 0"],
    ),
}

TEXTS: dict[str, Case] = {
    "no such text": Case(options("--calibration", "none.txt"), ["none.txt", "c4"]),
    "no such tokens": Case(options("--calibration", "none.safetensors"), ["none.safetensors"]),
    "a name too long": Case(
        options("--calibration", "x" * 5000), ["--calibration: ", "File name too long"]
    ),
    "a folder without texts": Case(lambda p: p.prune(calibration=empty(p)), ["no text files"]),
    "an empty text": Case(lambda p: p.text("e.txt", ""), ["no text", "at least one document"]),
    "a blank text": Case(lambda p: p.text("b.md", " \n\f\n"), ["no text", "b.md"]),
    "a tiny text": Case(
        lambda p: p.text("tiny.txt", "The heron."), ["only 0 windows", "tiny.txt", "fewer samples"]
    ),
    "text for one window, not for 8": Case(
        lambda p: p.text("short.txt", "The heron waits for a fish to pass. " * 4),
        ["windows of 32 tokens", "wanted 8 windows"],
    ),
    "Latin-1 text": Case(
        lambda p: p.text("l.txt", b"caf\xe9 au lait"), ["byte 0xe9 at offset 3", "iconv"]
    ),
    "text cut within a letter": Case(lambda p: p.text("c.txt", b"caf\xc3"), ["offset 3"]),
    "a binary": Case(lambda p: p.text("b.txt", b"ELF\0\1"), ["NUL byte at offset 3", "UTF-8"]),
    "UTF-16": Case(lambda p: p.text("u.txt", "heron".encode("utf-16")), ["UTF-8"]),
    "an unknown extension": Case(lambda p: p.text("data.pdf", "text"), ["'.pdf'", ".txt, .md"]),
    "no extension": Case(lambda p: p.text("data", "text"), ["no extension"]),
    "JSON lines, empty": Case(lambda p: p.text("e.jsonl", '{"text": ""}\n'), ["no text"]),
    "JSON lines, Latin-1": Case(
        lambda p: p.text("l.jsonl", b'{"text": "a"}\n{"text": "\xff"}'), ["0xff at offset 24"]
    ),
    "JSON lines, cut": Case(
        lambda p: p.text("b.jsonl", '{"text": "a"}\n\n{"text": \n'), ["invalid JSON", "line 3"]
    ),
    "JSON lines, deep": Case(lambda p: p.text("d.jsonl", "[" * 10**5), ["invalid JSON", "line 1"]),
    "JSON lines of lists": Case(lambda p: p.text("a.jsonl", "[1]"), ["a JSON list", "line 1"]),
    "JSON lines without text": Case(
        lambda p: p.text("k.jsonl", '{"a": 1, "b": 2}'), ['no field "text" (found: a, b)']
    ),
    "JSON lines of numbers": Case(lambda p: p.text("n.jsonl", '{"text": 3}'), ["is of type int"]),
    "JSON lines, half a character": Case(
        lambda p: p.text("h.jsonl", '{"text": "a\\ud800"}'), ["half a surrogate pair"]
    ),
    "parquet without text": Case(lambda p: p.parquet(body=["a"]), ['no column "text"']),
    "parquet with nothing": Case(lambda p: p.parquet(text=[None, None]), ["2 null records"]),
    "another column": Case(
        lambda p: [*p.text("k.jsonl", '{"a": "x"}'), "--column", "b"], ['no field "b" (found: a)']
    ),
    "a column not asked for": Case(
        lambda p: p.text("k.csv", "a,b\n1,2\n"), ["(found: a, b)", "try --column NAME"]
    ),
    "a column of plain text": Case(
        lambda p: [*p.text("k.txt", "a heron"), "--column", "b"], ["column 'b' of", "wanted"]
    ),
    "a calibration text twice": Case(
        lambda p: p.prune("--calibration", p.tokens), ["--calibration", "stands twice"]
    ),
    "calibration texts, fewer samples": Case(
        lambda p: p.prune("--calibration", "self", "--calibration", p.texts, samples=2),
        ["--samples 2 of 3 texts", "one of each at least"],
    ),
    "shares of one text": Case(
        lambda p: p.prune("--shares", "2"), ["--shares are those of several --calibration:"]
    ),
    "shares of other texts": Case(
        lambda p: p.prune("--calibration", "self", "--shares", "1,2,1"),
        ["--shares 1,2,1", "(there are 2)"],
    ),
    "shares that are none": Case(
        lambda p: p.prune("--calibration", "self", "--shares", "1,0"),
        ["--shares 1,0, wanted positive numbers"],
    ),
    "a share without end": Case(
        lambda p: p.prune("--calibration", "self", "--shares", "inf,1"),
        ["--shares inf,1, wanted positive numbers"],
    ),
    "calibration texts that are none": Case(
        lambda p: ["prune", p.dense, "--recipe", p.file("r.yaml", "calibration: [3, a]")],
        ["calibration=[3, 'a'], wanted text, or a list of texts"],
    ),
    "tokens too few for their share": Case(
        lambda p: p.prune("--calibration", p.texts, samples=20),
        ["8 sequences of 32 tokens", "wanted 10 of 32"],
    ),
    "a column of what the model writes": Case(
        lambda p: p.prune("--column", "b", calibration="self"), ["column names one of"]
    ),
    "messages without a template": Case(
        lambda p: p.text("m.json", '[{"messages": [{"role": "user", "content": "Hi"}]}]'),
        ["no chat template", "record 1"],
    ),
    "messages that are none": Case(
        lambda p: p.text("m.jsonl", '{"messages": [1]}'), ["no messages of a chat (int)", "line 1"]
    ),
    "an array that does not end": Case(
        lambda p: p.text("a.json", '[{"text": "a"},'), ["invalid JSON", "record 2"]
    ),
    "an array, deep": Case(lambda p: p.text("a.json", "[" * 10**5), ["invalid JSON", "record 1"]),
    "CSV with too much in a line": Case(
        lambda p: p.text("a.csv", "text\na,b\n"), ["2 values under 1 names", "line 2"]
    ),
    "gzip that is none": Case(lambda p: p.text("a.jsonl.gz", "not it"), ["damaged gzip"]),
    "gzip, cut": Case(
        lambda p: p.text("a.txt.gz", gzip.compress(b"a heron" * 99)[:-9]), ["damaged gzip"]
    ),
    "Arrow that is none": Case(lambda p: p.text("a.arrow", "not it"), ["damaged arrow"]),
    "parquet, empty": Case(lambda p: p.parquet(text=[]), ["no text"]),
    "parquet that is none": Case(lambda p: p.text("x.parquet", "not it"), ["damaged parquet"]),
    "parquet of no bytes": Case(lambda p: p.text("x.parquet", ""), ["damaged parquet"]),
    "parquet, cut": Case(truncated_parquet, ["damaged parquet"]),
    "tokens that are none": Case(
        lambda p: p.text("x.safetensors", "not it"), ["damaged safetensors"]
    ),
    "tokens under another name": Case(
        lambda p: p.tensors(tokens=IDS), ["no tensor 'input_ids' (found: tokens)"]
    ),
    "tokens of one dimension": Case(lambda p: p.tensors(input_ids=IDS[0]), ["shape [10]"]),
    "no tokens": Case(lambda p: p.tensors(input_ids=IDS[:0]), ["shape [0, 10]", "not empty"]),
    "tokens with a point": Case(lambda p: p.tensors(input_ids=IDS.float()), ["an integer type"]),
    "tokens yes or no": Case(lambda p: p.tensors(input_ids=IDS > 3), ["torch.bool"]),
    "tokens with padding": Case(
        lambda p: p.tensors(input_ids=IDS, attention_mask=(IDS != 13).long()),
        ["leaves out 1 of 10 tokens of sequence 1", "try packing"],
    ),
    "a mask of another shape": Case(
        lambda p: p.tensors(input_ids=IDS, attention_mask=IDS[0].clone()), ["shape [10]", "[2, 10]"]
    ),
    "tokens that predict nothing": Case(
        lambda p: p.tensors(input_ids=IDS[:, :1].clone()), ["shape [2, 1]", "at least 2 tokens"]
    ),
    "more samples than a machine holds": Case(
        options("--samples", 10**12, "--calibration", "builtin"),
        ["--samples 1000000000000, wanted at most 1000000"],
    ),
    "more written than a machine holds": Case(
        options("--written", 10**12), ["--written 1000000000000, wanted at most 1000000"]
    ),
    "negative tokens": Case(
        lambda p: p.tensors(input_ids=IDS - 1), ["token id -1 at sequence 0, position 0"]
    ),
    "tokens of another vocabulary": Case(
        lambda p: p.tensors(input_ids=make_tokens() + 100), ["wanted ids from 0 to 127"]
    ),
    "text without a tokenizer": Case(
        lambda p: p.prune(
            model=p.copy(remove("tokenizer.json", "tokenizer_config.json")), calibration=p.texts
        ),
        ["no tokenizer", "wanted"],
    ),
    "text with a tokenizer that is code": Case(
        lambda p: p.prune(model=p.copy(tokenizer_of_code), calibration=p.texts),
        ["without running the code beside it", "try --trust-remote-code"],
    ),
    "text with a tokenizer of another package": Case(
        lambda p: p.prune(model=p.copy(sentencepiece_model), calibration=p.texts),
        ["without the package sentencepiece", "tokenizer.model", "try pip install sentencepiece"]
        if importlib.util.find_spec("sentencepiece") is None
        else ["no tokenizer that can be read"],
    ),
    "text with a tokenizer that fails on it": Case(
        lambda p: p.prune(model=p.copy(words_only), calibration=p.texts),
        ["the tokenizer fails on the text", "wanted a tokenizer"],
    ),
    "text with a broken tokenizer": Case(
        lambda p: p.prune(model=p.copy(content("tokenizer.json", "{")), calibration=p.texts),
        ["no tokenizer that can be read", "tokenizer.json"],
    ),
    "text with half a tokenizer": Case(
        lambda p: p.prune(
            model=p.copy(content("tokenizer.json", '{"version": "1.0"}')), calibration=p.texts
        ),
        ["no tokenizer that can be read"],
    ),
    "text with a deep tokenizer": Case(
        lambda p: p.prune(
            model=p.copy(content("tokenizer.json", "[" * 10**5)), calibration=p.texts
        ),
        ["no tokenizer that can be read"],
    ),
}

GRADIENTS: dict[str, Case] = {
    "no such gradients": Case(
        lambda p: p.prune("--gradients", "none.safetensors", method="gblm"),
        ["no such file of gradients"],
    ),
    "gradients that are none": Case(
        lambda p: p.prune("--gradients", p.file("g.safetensors", "no"), method="gblm"),
        ["not the gradients of this model"],
    ),
    "gradients of another method's settings": Case(
        lambda p: p.prune(
            "--gradients", gradients(p, lambda t: None), "--set", "aggregate=l1", method="gblm"
        ),
        ["the gradients have aggregate 'l2'", "wanted 'l1'"],
    ),
    "a gradient is missing": Case(
        lambda p: p.prune("--gradients", gradients(p, lambda t: t.pop(UP)), method="gblm"),
        ["not the gradients of this model", UP],
    ),
    "gradients kept over a file": Case(
        lambda p: p.prune("--save-gradients", p.file("g", "mine"), method="gblm"),
        ["the file exists", "--overwrite"],
    ),
    "gradients kept nowhere": Case(
        lambda p: p.prune("--save-gradients", p.folder / "no" / "g", method="gblm"),
        ["no file can be written here"],
    ),
}

OUTPUT: dict[str, Case] = {
    "not empty": Case(lambda p: p.prune(out=occupied(p)), ["is not empty", "another --out"]),
    "a dry run too": Case(lambda p: p.prune("--dry-run", out=occupied(p)), ["is not empty"]),
    "not a model": Case(
        lambda p: p.prune("--overwrite", out=occupied(p)), ["something else than a model", "--out"]
    ),
    "a file in its place": Case(
        lambda p: p.prune("--overwrite", out=p.file("f", "")), ["is no folder"]
    ),
    "below a file": Case(
        lambda p: p.prune(out=p.file("f", "") / "below"), ["what lies above is no folder", "try"]
    ),
    "the source": Case(lambda p: p.prune("--overwrite", out=p.dense), ["is the model itself"]),
    "the source, by detour": Case(
        lambda p: p.prune("--overwrite", out=p.dense / ".." / p.dense.name), ["the model itself"]
    ),
    "above the source": Case(
        lambda p: p.prune("--overwrite", out=p.dense.parent), ["one of them contains the other"]
    ),
    "where nobody can write": Case(lambda p: p.prune(out="/proc/secateur/out"), ["/proc"]),
    "a name too long": Case(lambda p: p.prune(out=p.folder / ("x" * 300)), ["File name too long"]),
    "a name too long for the hidden one beside it": Case(
        lambda p: p.prune(out=p.folder / "new" / ("x" * 250)), ["File name too long", "try another"]
    ),
    "a null byte": Case(lambda p: p.prune(out="a\0b"), ["'a\\x00b' can be no path", "try another"]),
    "no UTF-8": Case(lambda p: p.prune(out="out-\udcff"), ["'out-\\udcff' can be no path"]),
    "within the source": Case(lambda p: p.prune(out=p.dense / "out"), ["contains the other"]),
    "a folder of the run's own name": Case(
        lambda p: p.prune(out=p.file(".f.partial", "mine").with_name("f")), ["is in the way"]
    ),
    "gradients within the source": Case(
        lambda p: p.prune("--save-gradients", p.dense / "g.safetensors", method="gblm"),
        ["would lie in the folder of the model"],
    ),
    "a device": Case(
        lambda p: p.prune("--save-gradients", "/dev/null", "--overwrite", method="gblm"),
        ["no file can be written here: it is a device"],
    ),
    "a quota": Case(lambda p: p.prune(), ["cannot be written", "freeing space"], 2, files_of_5_kB),
}

EVALUATE: dict[str, Case] = {
    "no such text": Case(lambda p: p.evaluate(text="none.txt"), ["none.txt"]),
    "a text shorter than a window": Case(
        lambda p: p.evaluate(text=p.file("s.txt", "The heron.")), ["only 0 windows of 32 tokens"]
    ),
    "a binary": Case(lambda p: p.evaluate(text=p.file("b.txt", b"a\0")), ["NUL byte"]),
    "int7": Case(lambda p: p.evaluate("--dtype", "int7"), ["int7", "float32"]),
    "a GPU too many": Case(lambda p: p.evaluate("--device", "cuda:77"), ["cuda:77"]),
    "no windows": Case(lambda p: p.evaluate("--windows", "0"), ["--windows 0", "wanted"]),
    "negative windows": Case(lambda p: p.evaluate("--windows", "-1"), ["--windows -1", "wanted"]),
    "windows of one token": Case(
        lambda p: ["evaluate", p.dense, "--text", p.tokens, "--sequence-length", 1],
        ["--sequence-length 1, wanted at least 2"],
    ),
    "more tokens than the model allows": Case(
        lambda p: ["evaluate", p.dense, "--text", p.tokens, "--sequence-length", 1000],
        ["sequences of 1000 tokens", "at most 64"],
    ),
    "no batch": Case(lambda p: p.evaluate("--batch-size", "0"), ["--batch-size 0", "wanted"]),
    "no dense model": Case(lambda p: p.evaluate("--against", "no/where/at"), ["no model folder"]),
    "another vocabulary": Case(
        lambda p: p.evaluate("--against", p.model(make_model("llama", vocab_size=130))),
        ["vocabularies of 128 and 130 in --against"],
    ),
    "a damaged model": Case(lambda p: p.evaluate(model=p.copy(cut(WEIGHTS, 9))), [BROKEN]),
    "an encoder": Case(lambda p: p.evaluate(model=encoder(p)), ["an encoder"]),
}

SHARD = f"model-00003-of-0000{BLOCKS + 1}.safetensors"


def of_pruned(*changes: Callable[[Path], object]) -> Callable[[Place], list[object]]:
    return lambda place: ["check", place.copy(*changes, of=place.pruned)]


def flip_a_bit(folder: Path) -> None:
    """Of a norm, which no pattern looks at."""
    tensors = load_file(folder / SHARD)
    tensors["model.layers.1.input_layernorm.weight"][0] += 1
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


CHECK: dict[str, Case] = {
    "no such folder": Case(lambda p: ["check", p.folder / "none"], ["no model folder"]),
    "a dense model": Case(
        lambda p: ["check", p.dense, "--pattern", "2:4"],
        ["21 matrices are not 2:4: model.layers.0.self_attn.q_proj.weight, "],
        1,
    ),
    "another pattern": Case(
        lambda p: ["check", p.pruned, "--pattern", "1:4"], ["21 matrices are not 1:4"], 1
    ),
    "a bad pattern": Case(lambda p: ["check", p.pruned, "--pattern", "4:2"], ["keeps 4 of 2"]),
    "a pattern that does not divide": Case(
        lambda p: ["check", p.pruned, "--pattern", "3:7"], ["are not 3:7"], 1
    ),
    "a changed norm": Case(of_pruned(flip_a_bit), [f"not as they were written: {SHARD}"], 1),
    "a changed tokenizer": Case(
        of_pruned(content("tokenizer_config.json", "{}")),
        ["not as they were written: tokenizer_config.json"],
        1,
    ),
    "a missing tokenizer": Case(of_pruned(remove("tokenizer.json")), ["tokenizer.json"], 1),
    "a record of files elsewhere": Case(
        of_pruned(record(files={"/etc/passwd": "0"})), ["/etc/passwd", "in the folder"]
    ),
    "a record of another kind": Case(
        of_pruned(content("run.json", '{"format": "secateur/run/99"}')), ["run.json"]
    ),
    "a record that is no JSON": Case(of_pruned(content("run.json", "{")), ["run.json"]),
    "a record without a pattern": Case(of_pruned(settings_of_stage({})), ["names no pattern"]),
    "a record with a wrong pattern": Case(
        of_pruned(settings_of_stage({"pattern": [2]})), ["cannot be read"]
    ),
    "a truncated shard": Case(of_pruned(cut(SHARD, 7)), [BROKEN, SHARD]),
    "a missing shard": Case(of_pruned(remove(SHARD)), [f"shard {SHARD} is missing"]),
    "a pickle": Case(lambda p: ["check", p.copy(rename(WEIGHTS, "a.bin"))], ["only pickled"]),
}

CLIFF: dict[str, Case] = {
    "a cliff of a whole pattern": Case(
        lambda p: ["cliff", p.dense, "--text", p.tokens, "--pattern", "blocks-1"],
        ["--pattern blocks-1", "wanted the name of what is removed alone: blocks"],
    ),
    "a cliff by a method of weights": Case(
        lambda p: ["cliff", p.dense, "--text", p.tokens, "--method", "wanda"],
        ["--method wanda removes no blocks", "shortgpt"],
    ),
    "a cliff of all blocks": Case(
        lambda p: [
            "cliff",
            p.dense,
            "--text",
            p.tokens,
            "--method",
            "magnitude",
            "--shares",
            BLOCKS,
        ],
        [f"removes {BLOCKS} of {BLOCKS} blocks"],
    ),
    "a cliff without a text": Case(lambda p: ["cliff", p.dense], ["--text"]),
}

BENCH: dict[str, Case] = {
    "no such folder": Case(lambda p: ["bench", p.folder / "none"], ["no model folder"]),
    "a dense model": Case(
        lambda p: ["bench", p.dense, "--prompt", 4],
        ["no linear layer has a 2:4 matrix", "wanted a model pruned to 2:4", "--pattern 2:4"],
    ),
    "a batch of none": Case(lambda p: ["bench", p.pruned, "--batches", "1,0"], ["--batches 1,0"]),
    "no batch": Case(lambda p: ["bench", p.pruned, "--batches", ","], ["--batches '', wanted"]),
    "a batch in words": Case(
        lambda p: ["bench", p.pruned, "--batches", "1,two"], ["--batches 1,two", "whole numbers"]
    ),
    "no prompt": Case(lambda p: ["bench", p.pruned, "--prompt", 0], ["--prompt 0", "wanted"]),
    "no new token": Case(
        lambda p: ["bench", p.pruned, "--new-tokens", 0], ["--new-tokens 0", "wanted"]
    ),
    "no repeat": Case(lambda p: ["bench", p.pruned, "--repeats", 0], ["--repeats 0", "wanted"]),
    "more tokens than the model allows": Case(
        lambda p: ["bench", p.pruned, "--prompt", 60, "--new-tokens", 5],
        ["65 together", "at most 64", "try a smaller --prompt"],
    ),
    "a form misspelt": Case(
        lambda p: ["bench", p.pruned, "--forms", "dense,pakced"], ["did you mean 'packed'?"]
    ),
    "no form": Case(lambda p: ["bench", p.pruned, "--forms", ","], ["no form; wanted some of"]),
    "a sparse form on a CPU": Case(
        lambda p: ["bench", p.pruned, "--forms", "packed", "--device", "cpu"],
        ["form 'packed' needs CUDA", "a CPU gains nothing"],
    ),
    "a truncated shard": Case(
        lambda p: ["bench", p.copy(cut(SHARD, 7), of=p.pruned)], [BROKEN, SHARD]
    ),
}

TABLE = {
    f"{group}: {name}": case
    for group, cases in {
        "command line": COMMAND_LINE,
        "options": OPTIONS,
        "recipe": RECIPES,
        "model": MODELS,
        "numbers": NUMBERS,
        "text": TEXTS,
        "gradients": GRADIENTS,
        "output": OUTPUT,
        "evaluate": EVALUATE,
        "check": CHECK,
        "cliff": CLIFF,
        "bench": BENCH,
    }.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def pruned(llama_folder: Path, tokens_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, pruned to 2:4."""
    out = tmp_path_factory.mktemp("pruned") / "llama"
    secateur.prune(
        llama_folder, method="wanda", calibration=tokens_file, sequence_length=32, out=out
    )
    return out


@pytest.fixture
def place(
    tmp_path: Path, llama_folder: Path, pruned: Path, tokens_file: Path, text_folder: Path
) -> Place:
    return Place(tmp_path, llama_folder, pruned, tokens_file, text_folder)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_costs_one_line(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_case(TABLE[name], place, monkeypatch, capsys)


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 60


def test_the_conversion_that_is_advised_works(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pickle of the user's own becomes what can be pruned."""
    model = AutoModelForCausalLM.from_pretrained(place.dense)
    folder = place.copy(remove(WEIGHTS))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert run(place.prune(model=folder), monkeypatch) == 2
    command = capsys.readouterr().err.strip().partition("if you trust who made it: ")[2]
    # Its `python` is whichever one a user has activated: here, this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    converted = command.split()[-1]
    assert run(place.prune(model=converted), monkeypatch) == 0
    before, after = load_file(place.pruned / SHARD), load_file(place.out / SHARD)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_not_there_is_not_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(place.prune(method="wnada", out="a/b/c"), monkeypatch) == 2
    assert os.listdir(place.folder) == []
