"""`check` says yes about what loads and was counted: no record, no file beside it helps a lie."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from secateur.cli import terminal
from secateur.cli.check import _print
from secateur.errors import CheckpointError, PatternError, RecipeError, SecateurError
from secateur.record.check import check_folder
from secateur.sparsity import NofM, Unstructured, audit, parse_pattern
from tiny import make_model, make_tokens, save

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense Llama of two blocks. Not to be written to."""
    model = make_model("llama", num_hidden_layers=2)
    return save(model, tmp_path_factory.mktemp("dense") / "llama")


@pytest.fixture(scope="module")
def pruned(dense: Path) -> Path:
    """The same at 2:4. Not to be written to."""
    secateur.prune(dense, method="magnitude", pattern="2:4", out=dense.parent / "pruned")
    return dense.parent / "pruned"


@pytest.fixture
def copy(pruned: Path, tmp_path: Path) -> Path:
    """A copy of the pruned model, to be spoilt."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


def change_record(folder: Path, **settings: Any) -> None:
    """What the record says of its one stage."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    record["stages"][0]["settings"] |= settings
    path.write_text(json.dumps(record))


def put_dense_weights(folder: Path, dense: Path) -> None:
    """Dense weights in the shards of a pruned model, and their checksums in its record."""
    from secateur.checkpoint.durable import sha256

    tensors = load_file(dense / "model.safetensors")
    record = json.loads((folder / "run.json").read_text())
    for shard in folder.glob("*.safetensors"):
        save_file({name: tensors[name] for name in load_file(shard)}, shard, {"format": "pt"})
        record["files"][shard.name] = sha256(shard)
    (folder / "run.json").write_text(json.dumps(record))


# --- files ---


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "consolidated.safetensors", "model.gguf", "pytorch_model.bin.index.json",
     "MODEL.SAFETENSORS", "tf_model.h5", "original/consolidated.00.pth", "w.pth.tar",
     "onnx/fp16/model.onnx_data", "model.safetensors.bak", "weights.npz", "model.pkl",
     "model.gguf.part1of2", "optimizer-of-model.bin", "__0_0.distcp"],
)  # fmt: skip
def test_a_weight_file_that_nothing_vouches_for_is_named(
    copy: Path, dense: Path, name: str
) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(dense / "model.safetensors", copy / name)
    proof = check_folder(str(copy))
    assert proof.unproved == (name,)
    assert proof.complaint == f"files that nothing vouches for: {name}"
    assert proof.as_dict()["unproved_files"] == [name]


def test_what_loads_is_counted_not_what_the_record_names(copy: Path, dense: Path) -> None:
    """transformers takes model.safetensors, whatever the index beside it says."""
    shutil.copy(dense / "model.safetensors", copy)
    proof = check_folder(str(copy))
    assert proof.zeros == 0
    assert len(proof.failing) == 14
    shards = sorted(path.name for path in copy.glob("model-*.safetensors"))
    index = "model.safetensors.index.json"
    assert proof.unproved == tuple(sorted([*shards, index, "model.safetensors"]))


def test_a_shard_without_a_checksum_is_named(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    (first, *_) = sorted(name for name in record["files"] if name.endswith(".safetensors"))
    del record["files"][first]
    (copy / "run.json").write_text(json.dumps(record))
    assert check_folder(str(copy)).unproved == (first,)


def test_training_state_is_no_weight_file(copy: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "random_states_1.pkl"):
        (copy / name).write_bytes(b"")
    assert check_folder(str(copy)).complaint is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"dtype": "int8"}),
        ("config.json", {"dtype": "float8_e4m3fn"}),
        ("config.json", {"dtype": 3}),
        ("config.json", {"quantization_config": {}}),
        ("generation_config.json", {"max_new_tokens": "x"}),
        ("generation_config.json", {"early_stopping": 7}),
        ("generation_config.json", {"watermarking_config": {"x": 1}}),
        ("generation_config.json", None),
    ],
)
def test_what_transformers_does_not_load_is_refused(copy: Path, name: str, change: Any) -> None:
    (copy / "run.json").unlink()
    facts = None if change is None else {**json.loads((copy / name).read_text()), **change}
    (copy / name).write_text(json.dumps(facts))
    with pytest.raises((AttributeError, TypeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(copy)
    with pytest.raises(CheckpointError) as refused:
        check_folder(str(copy), "2:4")
    assert name in str(refused.value)


# --- what a record says ---


def test_a_record_that_counts_zeros_that_are_not_there_does_not_hold(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    matrices = record["stages"][-1]["blocks"][1]["matrices"]
    one = next(matrix for matrix in matrices if matrix["name"] == NAME)
    one["zeros"] = one["rows"] * one["columns"] * 3 // 4
    (copy / "run.json").write_text(json.dumps(record))
    proof = check_folder(str(copy))
    assert proof.misstated == (NAME,)
    assert proof.complaint == f"run.json says otherwise of {NAME}"


def test_a_configuration_of_fewer_blocks_than_the_record_has_does_not_hold(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    record = json.loads((copy / "run.json").read_text())
    del record["files"]["config.json"]
    (copy / "run.json").write_text(json.dumps(record))
    proof = check_folder(str(copy))
    assert proof.unproved == ("config.json",)
    assert len(proof.misstated) == 7
    assert all(name.startswith("model.layers.1.") for name in proof.misstated)


# --- what a record leaves out ---


@pytest.mark.parametrize(
    "settings",
    [
        {"exclude": ["."]},
        {"include": ["no such matrix"]},
        {"dense_first": 99},
        {"blocks": "50-"},
        {"patterns": {".": "0.1%"}},
        {"pattern": "0.0000001"},
        {"patterns": {".": "1:7"}},
    ],
)
def test_the_word_of_a_record_is_no_proof(
    copy: Path, dense: Path, settings: dict[str, Any]
) -> None:
    put_dense_weights(copy, dense)
    change_record(copy, **settings)
    proof = check_folder(str(copy))
    assert proof.holds is False
    assert proof.complaint is not None
    assert not proof.changed
    assert not proof.unproved


def test_what_a_record_leaves_out_is_listed_as_what_it_says(copy: Path, dense: Path) -> None:
    change_record(copy, exclude=["down_proj"], dense_first=1)
    proof = check_folder(str(copy))
    assert proof.complaint is None
    assert proof.by_record
    facts = proof.as_dict()
    assert facts["matrices_chosen_by"] == "run.json"
    assert 0 < facts["covered_weights"] < facts["weights"] / 2
    assert facts["covered_by"] == {"2:4": proof.covered}
    chosen = {(one.reason, one.name, one.blocks) for one in proof.left_dense if one.chosen}
    assert ("excluded", "mlp.down_proj", (1,)) in chosen
    assert ("dense_first", "mlp.down_proj", (0,)) in chosen
    verdicts = {kind.kind: kind.verdict for kind in proof.kinds}
    assert (verdicts["mlp.down_proj"], verdicts["mlp.up_proj"]) == ("dense", "part")
    printed = text_of(proof, 100)
    assert "left dense by run.json, excluded: mlp.down_proj in blocks 1 (2,048 weights)" in printed
    covered = r"of 18.4 k prunable weights are to have the pattern (2:4: "
    assert covered in printed


def test_what_the_command_leaves_out_is_its_own_word(copy: Path, dense: Path) -> None:
    assert check_folder(str(dense), "2:4", exclude=".").holds is False  # nothing is covered
    change_record(copy, exclude=["."])
    proof = check_folder(str(copy), exclude="down_proj")  # the record's pattern, not its exclusions
    assert (proof.by_record, proof.complaint) == (False, None)
    assert {kind.kind for kind in proof.kinds if not kind.covered} == {"mlp.down_proj"}
    assert check_folder(str(copy), blocks="1", patterns={"q_proj": 0.5}).complaint is None
    with pytest.raises(RecipeError, match="no pattern to look for; try --pattern"):
        check_folder(str(dense), dense_first=1)
    with pytest.raises(PatternError, match="is no regular expression"):
        check_folder(str(copy), include="(")
    with pytest.raises(RecipeError, match="dense_first=-1"):
        check_folder(str(copy), dense_first=-1)


def test_a_record_that_cannot_be_read_is_refused_before_anything_is_counted(copy: Path) -> None:
    (copy / "run.json").write_text('{"files": 3}')
    with pytest.raises(SecateurError, match="the run record cannot be read"):
        check_folder(str(copy), "2:4")


def test_an_expression_without_end_ends_in_a_line(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.sparsity.expression.MOST_EXPRESSION_SECONDS", 0.05)
    change_record(copy, exclude=["((.{1,9999}){1,9999}){1,9999}[0-9]{9}"])
    with pytest.raises(PatternError, match=r"the regular expression .* takes too long"):
        check_folder(str(copy))
    with pytest.raises(PatternError, match="2000 characters in a regular expression"):
        check_folder(str(copy), exclude="a" * 2000)


# --- counting ---


@pytest.mark.parametrize("pattern", ["0.1%", "99.99%", "1:7", "3%"])
def test_a_pattern_that_fits_no_row_does_not_hold(dense: Path, pattern: str) -> None:
    proof = check_folder(str(dense), pattern)
    assert proof.holds is False
    assert len(proof.failing) == 14
    for columns in (32, 64):
        parsed = parse_pattern(pattern)
        if not parsed.fits(columns):
            assert not audit(torch.zeros(4, columns), parsed).holds
            with pytest.raises(PatternError, match=r"in x; wanted .*; try .*--exclude 'x'"):
                parsed.check_fits(columns, "x")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "small"),
    [(torch.float64, 1e-300), (torch.float32, 1e-45), (torch.bfloat16, 1e-39)],
)
def test_zeros_are_counted_in_the_dtype_of_the_files(
    tmp_path: Path, dtype: torch.dtype, small: float, packed: bool
) -> None:
    folder = save(make_model("llama", num_hidden_layers=2, dtype=dtype), tmp_path / "model")
    shard = folder / "model.safetensors"
    tensors = load_file(shard)
    tensors[NAME] = torch.full_like(tensors[NAME], small)
    tensors[NAME][:, ::2] = 0
    assert int((tensors[NAME] == 0).sum()) == tensors[NAME].numel() // 2
    save_file(tensors, shard, {"format": "pt"})
    if packed and dtype != torch.float64:
        secateur.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    counted = {kind.kind: kind.zeros for kind in check_folder(str(folder)).kinds}
    assert counted["mlp.up_proj"] == tensors[NAME].numel() // 2


# --- what is printed ---


def text_of(proof: Any, width: int) -> str:
    """What `check` prints on a terminal of some width."""
    stream, before = io.StringIO(), terminal.out
    terminal.out = terminal.PipedConsole(
        file=stream, force_terminal=True, width=width, color_system=None
    )
    try:
        _print(proof)
    finally:
        terminal.out = before
    return stream.getvalue()


@pytest.mark.parametrize("width", [1, 3, 20, 40, 60, 80, 200])
def test_verdicts_are_read_in_every_width(copy: Path, dense: Path, width: int) -> None:
    change_record(copy, exclude=["down_proj"])
    proof = check_folder(str(copy))
    lines = text_of(proof, width).splitlines()
    verdicts = {kind.kind: kind.verdict for kind in proof.kinds}
    for kind, verdict in verdicts.items():
        assert any(line.startswith(f"{verdict:<5} {kind}") for line in lines)


def test_no_columns_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert terminal.PipedConsole().width > 0


@pytest.mark.parametrize(
    ("pattern", "columns", "hint"),
    [
        (NofM(2, 4), 30, "1:2, or --exclude 'mlp.down_proj'"),
        (NofM(2, 4), 31, "50%, or --exclude 'mlp.down_proj'"),
        (NofM(4, 8), 12, "3:6, or --exclude 'mlp.down_proj'"),
        (NofM(2, 4), 1, "--exclude 'mlp.down_proj'"),
        (Unstructured(0.001), 64, "1.5625%, or --exclude 'mlp.down_proj'"),
    ],
)
def test_the_nearest_pattern_that_fits_is_named(pattern: Any, columns: int, hint: str) -> None:
    with pytest.raises(PatternError) as fault:
        pattern.check_fits(columns, "model.layers.0.mlp.down_proj.weight")
    assert str(fault.value).endswith(f"try {hint}")


def test_a_ratio_that_is_shared_out_holds_over_all(dense: Path, tmp_path: Path) -> None:
    """Some matrices have less than 60 %, and all of them together have it."""
    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": make_tokens(8, 32)}, tokens)
    out = tmp_path / "out"
    secateur.prune(
        dense, method="wanda", pattern="60%", allocation="owl", calibration=tokens, samples=8,
        sequence_length=32, out=out,
    )  # fmt: skip
    proof = check_folder(str(out))
    assert proof.complaint is None
    assert min(kind.lowest for kind in proof.kinds) < 0.58
    assert check_folder(str(out), "60%").failing  # every matrix was asked
    put_dense_weights(out, dense)
    assert check_folder(str(out)).holds is False
    for pattern in ("0.1%", "4%"):
        change_record(out, pattern=pattern)
        assert check_folder(str(out)).holds is False
