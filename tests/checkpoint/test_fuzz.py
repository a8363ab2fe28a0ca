"""Readers meet what nobody meant: headers, indices, configurations, recipes and patterns at random.

Whatever the bytes are, they are either read or refused by a `SecateurError` on one line; any other
exception is a defect. By default few cases are tried, and the same every time; to try others,

    SECATEUR_FUZZ=20000 pytest tests/checkpoint/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from secateur.checkpoint import Checkpoint, open_model
from secateur.data import Draw, load_calibration, read_documents
from secateur.errors import PatternError, RecipeError, SecateurError
from secateur.recipe import Recipe
from secateur.recipe.yaml_file import read_value, read_yaml
from secateur.record import read_record
from secateur.sparsity import Dense, keep_mask, parse_pattern

BUDGET = int(os.environ.get("SECATEUR_FUZZ", "60"))
fuzz = settings(
    max_examples=BUDGET,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**80), max_value=2**80)
    | st.floats()
    | st.text(max_size=12)
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@contextlib.contextmanager
def one_line_at_most() -> Iterator[None]:
    """What is inside may be refused, on one line; nothing else may be raised."""
    said = ""
    try:
        yield
    except SecateurError as fault:
        said = str(fault)
    assert "\n" not in said
    assert len(said) < 4000


@pytest.fixture(scope="module")
def scratch(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder to be damaged, over and over; every test puts back what it changed."""
    return shutil.copytree(llama_folder, tmp_path_factory.mktemp("fuzz") / "model")


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """A file with other bytes, for a while."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


# --- safetensors headers ---

tensor_claims = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "BOOL", "U7", ""]) | scalars,
        "shape": st.lists(st.integers(-2, 2**64), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-2, 2**64), min_size=2, max_size=2)
        | st.tuples(st.just(0), st.integers(0, 64)).map(list)
        | json_values,
        "more": scalars,
    },
)
names = st.sampled_from(["model.norm.weight", "lm_head.weight", "x", "__metadata__", ""])
headers = st.dictionaries(names | st.text(max_size=8), tensor_claims | json_values, max_size=4)


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A file whose header claims anything, in a length that may be a lie."""
    text = draw(headers.map(lambda claims: json.dumps(claims).encode()) | st.binary(max_size=64))
    honest = st.just(len(text))
    length = draw(honest | st.integers(0, 2**64 - 1) | st.integers(0, 200))
    return length.to_bytes(8, "little") + text + draw(st.binary(max_size=64))


@fuzz
@given(data=safetensors_files() | st.binary(max_size=100))
def test_headers_of_weights(scratch: Path, data: bytes) -> None:
    with replaced(scratch / WEIGHTS, data), one_line_at_most():
        checkpoint = Checkpoint(scratch)
        checkpoint.load(checkpoint.names)


@fuzz
@given(data=safetensors_files())
def test_headers_of_tokens(scratch: Path, data: bytes) -> None:
    path = scratch.parent / "tokens.safetensors"
    with replaced(path, data), one_line_at_most():
        load_calibration(str(path), Draw(4, 8), tokenizer=None, vocabulary=128)


@fuzz
@given(
    place=st.floats(0, 1),
    length=st.integers(1, 16),
    bytes_=st.binary(min_size=16, max_size=16),
    cut=st.integers(0, 200),
)
def test_true_weights_with_a_stretch_overwritten(
    scratch: Path, place: float, length: int, bytes_: bytes, cut: int
) -> None:
    whole = bytearray((scratch / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    start = int(place * (header - 1))
    whole[start : start + length] = bytes_[:length]
    data = bytes(whole[: len(whole) - cut])
    with replaced(scratch / WEIGHTS, data), one_line_at_most():
        open_model(scratch, torch.device("cpu"), torch.float32)


# --- indices, configurations, records ---

files = st.sampled_from(
    ["a.safetensors", "../a.safetensors", "/etc/passwd", "..", ".", "", "a\0", "sub/a.safetensors"]
)
indices = st.dictionaries(
    st.sampled_from(["weight_map", "metadata", "x"]),
    st.dictionaries(names | st.text(max_size=8), files | scalars, max_size=4) | json_values,
    max_size=3,
)


@fuzz
@given(index=indices | json_values)
def test_indices(scratch: Path, index: Any) -> None:
    opened: list[Path] = []
    with replaced(scratch / INDEX, json.dumps(index).encode()), one_line_at_most():
        opened += Checkpoint(scratch).files.values()
    assert {path.parent for path in opened} <= {scratch}


@fuzz
@given(data=st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_indices_and_configurations_of_any_bytes(scratch: Path, data: bytes) -> None:
    with replaced(scratch / INDEX, data), one_line_at_most():
        Checkpoint(scratch)
    with replaced(scratch / "config.json", data), one_line_at_most():
        open_model(scratch, torch.device("cpu"))


CONFIG_KEYS = [
    "model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "intermediate_size", "vocab_size", "head_dim", "hidden_act", "dtype",
    "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "quantization_config",
    "auto_map", "pad_token_id", "is_decoder", "text_config",
]  # fmt: skip
config_values = (
    json_values
    | st.sampled_from(["llama", "gpt2", "bert", "mixtral", "float32", "int8", "relu", "default"])
    | st.integers(-1, 64)
)


@fuzz
@given(changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), config_values, max_size=3))
@pytest.mark.filterwarnings("ignore")  # transformers' own, on what it makes of the values
def test_configurations(scratch: Path, changes: dict[str, Any]) -> None:
    true = json.loads((scratch / "config.json").read_text())
    data = json.dumps({**true, **changes}).encode()
    with replaced(scratch / "config.json", data), one_line_at_most():
        open_model(scratch, torch.device("cpu"))


@fuzz
@given(data=json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=64))
def test_records(scratch: Path, data: bytes) -> None:
    with replaced(scratch / "run.json", data), one_line_at_most():
        read_record(scratch)


# --- recipes and patterns ---

yaml_text = st.text(
    st.sampled_from("ab:-[]{}&*!?|>%@`'\"#,. \n\t0123456789eE+x~\\/"), max_size=80
) | st.text(max_size=60)


@fuzz
@given(text=yaml_text | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_recipe_files(scratch: Path, text: str) -> None:
    path = scratch.parent / "recipe.yaml"
    with replaced(path, text.encode("utf-8", "surrogatepass")), one_line_at_most():
        Recipe.build(read_yaml(path), str(path))
    read_value(text)


@fuzz
@given(values=st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), json_values))
def test_recipes(values: dict[str, Any]) -> None:
    with one_line_at_most(), contextlib.suppress(RecipeError):
        Recipe.build(values).spelled_out()


@fuzz
@given(
    text=st.text(st.sampled_from("0123456789:.%eE+- infa"), max_size=12)
    | st.text(max_size=12)
    | st.from_regex(r"(dense|(ffn|heads|experts|blocks)-[0-9]{1,3}%?)", fullmatch=True)
    | st.floats()
    | st.integers(),
    columns=st.integers(1, 40),
)
def test_patterns(text: str | float, columns: int) -> None:
    with one_line_at_most():
        pattern = parse_pattern(text)
        assert parse_pattern(str(pattern)) == pattern
        with contextlib.suppress(PatternError):
            pattern.check_fits(columns, "here")
            keep = keep_mask(1 + torch.rand(3, columns), pattern)
            if isinstance(pattern, Dense):  # structures too: every weight of what stays is kept
                assert keep.all()
            else:
                assert 0 < int(keep.sum()) < keep.numel()


# --- texts ---


@fuzz
@given(data=st.binary(max_size=80), suffix=st.sampled_from([".txt", ".jsonl", ".parquet", ".x"]))
def test_texts(scratch: Path, data: bytes, suffix: str) -> None:
    path = scratch.parent / f"text{suffix}"
    with replaced(path, data), one_line_at_most():
        read_documents(str(path), "train")


def test_the_model_that_was_damaged_is_whole_again(scratch: Path, llama_folder: Path) -> None:
    assert load_file(scratch / WEIGHTS).keys() == load_file(llama_folder / WEIGHTS).keys()
    open_model(scratch, torch.device("cpu"))
