"""Which matrices are pruned, and to which pattern: read, applied, recorded, proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.checkpoint import Checkpoint, find_all_matrices, find_blocks
from secateur.cli.commands import app
from secateur.errors import PatternError, RecipeError
from secateur.record.check import check_folder
from secateur.sparsity import NofM, Unstructured, audit, read_selection
from tiny import make_model, make_tokens, save

SHORT: dict[str, Any] = {"samples": 6, "sequence_length": 16, "method": "wanda"}
HALF = Unstructured(0.5)


def name(block: Any, kind: str = "self_attn.q_proj") -> Any:
    return f"model.layers.{block}.{kind}.weight"


def chosen(**keys: Any) -> Any:
    """The blocks, of 0 to 9, in which q_proj is pruned."""
    selection = read_selection({"pattern": "2:4", **keys})
    return [block for block in range(10) if selection.pattern_of(block, name(block)) is not None]


def test_blocks_are_counted_from_zero_with_both_ends() -> None:
    assert chosen() == list(range(10))
    assert chosen(blocks="4-7") == [4, 5, 6, 7]
    assert chosen(blocks="0, 3,8-") == [0, 3, 8, 9]
    assert chosen(dense_first=8) == [8, 9]
    assert chosen(blocks="0-4", dense_first=3) == [3, 4]


def test_expressions_are_searched_for_in_the_full_name() -> None:
    assert chosen(include=[r"layers\.[12]\."]) == [1, 2]
    assert chosen(include=["q_proj"], exclude=[r"\.3\."]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert chosen(include=["mlp"]) == []
    assert chosen(include=["mlp", r"\.5\..*q_proj"]) == [5]


def test_the_first_expression_that_is_found_decides_on_the_pattern() -> None:
    selection = read_selection({"pattern": "2:4", "patterns": {"q_proj": "50%", "attn": "4:8"}})
    assert selection.pattern_of(0, name(0)) == HALF
    assert selection.pattern_of(0, name(0, "self_attn.k_proj")) == NofM(4, 8)
    assert selection.pattern_of(0, name(0, "mlp.up_proj")) == NofM(2, 4)
    assert str(selection) == "2:4, by matrix"
    assert str(read_selection({"pattern": "2:4"})) == "2:4"


@pytest.mark.parametrize("blocks", ["", "a", "3-1", "-3", "1,,2", "1:4", "1.5"])
def test_blocks_that_cannot_be_read_are_named(blocks: int) -> None:
    with pytest.raises(PatternError, match=r"blocks .* cannot be read; wanted numbers"):
        read_selection({"pattern": "2:4", "blocks": blocks})


def test_an_expression_that_cannot_be_read_is_named() -> None:
    with pytest.raises(PatternError, match=r"'mlp\(' is no regular expression"):
        read_selection({"pattern": "2:4", "exclude": ["mlp("]})


def sparsities(model: Any) -> Any:
    """Name of every matrix -> its share of zeros."""
    blocks = find_blocks(model)
    return {
        blocks.prefix(index) + matrix.name: audit(matrix.read()).sparsity
        for index, matrices in enumerate(find_all_matrices(blocks))
        for matrix in matrices
    }


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "wanda++", "gblm", "magnitude"])
def test_what_is_not_chosen_keeps_every_bit(method: str) -> None:
    model = make_model("llama")
    dense = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = secateur.prune(
        model, **{**SHORT, "method": method}, calibration=make_tokens(6, 16), dense_first=1,
        exclude=["o_proj", r"2\.mlp"], patterns={"self_attn.[qv]": "25%"},
    )  # fmt: skip
    for matrix, share in sparsities(model).items():
        kept = matrix.startswith("model.layers.0.") or "o_proj" in matrix or "2.mlp" in matrix
        wanted = 0 if kept else 0.25 if "q_proj" in matrix or "v_proj" in matrix else 0.5
        assert share == pytest.approx(wanted), matrix
        assert not kept or torch.equal(dict(model.named_parameters())[matrix], dense[matrix])
    errors = [block.output_error for block in run.blocks]
    assert errors[0] is None
    assert method == "magnitude" or all(0 < error < 1 for error in errors[1:])
    every = sum(matrix.rows * matrix.columns for block in run.blocks for matrix in block.matrices)
    assert run.weights == every == sum(p.numel() for n, p in dense.items() if "_proj" in n)
    assert run.sparsity < 0.5


def test_blocks_below_the_first_pruned_one_are_passed_as_they_are() -> None:
    """Block 1 sees what the dense block 0 gives: the same as pruning with block 0 alone dense."""
    tokens = make_tokens(6, 16)
    one, two = make_model("llama"), make_model("llama")
    secateur.prune(one, **SHORT, calibration=tokens, dense_first=1)
    secateur.prune(two, **SHORT, calibration=tokens, blocks="1-")
    weights = dict(two.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in one.named_parameters())


def test_a_choice_is_written_recorded_and_proven(tokens_file: Path, tmp_path: Path) -> None:
    folder, out = save(make_model("mixtral"), tmp_path / "dense"), tmp_path / "out"
    secateur.prune(
        folder, method="wanda", calibration=str(tokens_file), samples=8, sequence_length=32,
        out=out, exclude=r"experts\.2\.", patterns={"self_attn": 0.25}, blocks=1,
    )  # fmt: skip
    recipe = json.loads((out / "run.json").read_text())["stages"][0]["settings"]
    assert recipe["exclude"] == [r"experts\.2\."]
    assert (recipe["patterns"], recipe["blocks"]) == ({"self_attn": "25%"}, "1")
    proof = check_folder(str(out), None)  # by its own recipe
    assert not proof.failing
    shares = {kind.kind: (kind.zeros / kind.weights, kind.lowest) for kind in proof.kinds}
    assert shares["mlp.experts.down_proj"] == (0.5 * 3 / 8, 0)
    assert shares["self_attn.q_proj"] == (0.25 / 2, 0)
    assert len(check_folder(str(out), "2:4").failing) == 8 + 2 + 4 + 4  # what is not 2:4 everywhere
    old, new = Checkpoint(folder), Checkpoint(out)
    kept = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert torch.equal(old.load([kept])[kept], new.load([kept])[kept])


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"include": ["q_prj"]}, r"no matrix has 'q_prj' in its name; wanted .*self_attn\.q_proj"),
        ({"patterns": {"conv": "50%"}}, "no matrix has 'conv' in its name"),
        ({"blocks": "3-5"}, r"nothing is left to prune in 3 blocks of self_attn\.q_proj"),
        ({"dense_first": 3}, "nothing is left to prune"),
        ({"blocks": "x"}, "blocks 'x' cannot be read"),
        ({"dense_first": -1}, "dense_first=-1"),
        ({"patterns": {"mlp": "4:2"}}, "pattern '4:2' keeps 4 of 2"),
        ({"parameters": {"variant": True}, "patterns": {"mlp": "2:4"}, "pattern": "50%"},
         "variant=true chooses a ratio per row"),
    ],
)  # fmt: skip
def test_a_choice_that_makes_no_sense_is_refused(keys: Any, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        secateur.prune(make_model("llama"), **SHORT, calibration=make_tokens(6, 16), **keys)


def test_the_command_chooses(llama_folder: Path, tokens_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "prune", llama_folder, "--method", "wanda", "--calibration", tokens_file, "--samples", 8,
        "--sequence-length", 32, "--out", out, "--include", "mlp", "--include", "q_proj",
        "--exclude", "up_proj", "--blocks", "0-1", "--dense-first", 1,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    shares = {kind.kind: kind.zeros / kind.weights for kind in check_folder(str(out), None).kinds}
    third = pytest.approx(1 / 6)
    assert shares == {
        "self_attn.q_proj": third, "self_attn.k_proj": 0, "self_attn.v_proj": 0,
        "self_attn.o_proj": 0, "mlp.gate_proj": third, "mlp.up_proj": 0, "mlp.down_proj": third,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", ["parameter", "memory"])
def test_weights_that_two_blocks_share_are_pruned_once(share: str, dtype: torch.dtype) -> None:
    """The second block reads them as the first one pruned them; they keep that block's mask."""
    model, alone = make_model("llama", dtype=dtype), make_model("llama", dtype=dtype)
    first, last = model.model.layers[0].mlp, model.model.layers[2].mlp
    parameter = first.up_proj.weight
    last.up_proj.weight = parameter if share == "parameter" else nn.Parameter(parameter.data)
    run = secateur.prune(model, **SHORT, calibration=make_tokens(6, 16))
    secateur.prune(alone, **SHORT, calibration=make_tokens(6, 16))
    assert torch.equal(parameter, alone.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(last.up_proj.weight, parameter)
    assert [len(block.matrices) for block in run.blocks] == [7, 7, 6]
