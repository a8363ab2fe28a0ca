"""run.json: written and read again, in the present version and in the ones before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from records import make_record
from secateur.comparison.runs import Run
from secateur.errors import CheckpointError, OutputError
from secateur.recipe import Recipe
from secateur.record import RunRecord, StageRecord, find_records, read_record, write_record
from secateur.reporting import side_by_side
from secateur.reporting.page import render

FIRST = """{
  "format": "secateur/run/1",
  "created": "2026-03-01T00:00:00+00:00",
  "recipe": {"model": "models/heron", "out": null, "method": "wanda", "pattern": "2:4",
             "calibration": "texts/calibration", "samples": 16, "sequence_length": 128, "seed": 0,
             "text": "texts/heldout", "windows": 24, "parameters": {"compare": "layer"},
             "preset": "paper", "regional": {}, "batch_size": null, "dtype": "auto",
             "device": "cuda:1", "overwrite": false},
  "architecture": "LlamaForCausalLM", "streamed": true, "device": "cuda:1", "dtype": "bfloat16",
  "calibration": null,
  "blocks": [{"index": 0, "output_error": 0.25, "seconds": {"prune": 1.5}, "notices": ["a block"],
              "matrices": [{"name": "model.layers.0.mlp.up_proj.weight", "rows": 4, "columns": 8,
                            "zeros": 16, "holds": true}]}],
  "seconds": 3.5, "peak_memory_bytes": 1000, "peak_device_memory_bytes": null,
  "versions": {"secateur": "0.1.0"}, "machine": {"cores": "2"}, "notices": ["a run"],
  "files": {"model.safetensors": "00"}
}"""
"""A record as the first version wrote it, before `compare` was called `competition`, and before
there were schedules, allocations or sequences that the dense model writes."""
SAME: dict[str, Any] = {
    "model": "models/heron", "method": "wanda", "pattern": "2:4",
    "calibration": "texts/calibration", "samples": 16, "sequence_length": 128,
    "text": "texts/heldout", "windows": 24, "parameters": {"competition": "layer"},
    "bos": "stream",
}  # fmt: skip


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The folder of a run of the first version."""
    (tmp_path / "run.json").write_text(FIRST, encoding="utf-8")
    return tmp_path


def test_a_record_of_the_first_version_is_read(first: Path) -> None:
    record = read_record(first)
    assert record is not None
    assert record.format == "secateur/run/2"
    (stage,) = record.stages
    assert (stage.kind, stage.seconds, stage.notices) == ("prune", 3.5, ("a run",))
    assert stage.settings["parameters"] == {"competition": "layer", "variant": False}
    assert (record.method, record.pattern, record.notices) == ("wanda", "2:4", ("a run",))
    assert (record.zeros, record.weights, record.mean_output_error) == (16, 32, 0.25)
    assert record.recipe["schedule"] == "block"  # there was no other one
    assert (record.settings["written"], record.settings["also_text"]) == (0, [])
    assert record.files == {"model.safetensors": "00"}


def test_a_record_of_the_first_version_is_reported(first: Path) -> None:
    records = find_records([first])
    (comparison,) = side_by_side(records)
    assert comparison.model == "models/heron"
    page = render(records)
    assert "a run" in page
    assert "a block" in page
    assert "competition: layer" in page


def test_a_run_of_the_first_version_counts_as_done(first: Path) -> None:
    assert Run("a", first, Recipe.build(SAME)).finished() == read_record(first)
    for changes in ({"device": "cpu", "trust_remote_code": True}, {"gradients": None}):
        assert Run("a", first, Recipe.build({**SAME, **changes})).finished() is not None
    said = r"this run has parameters\.competition layer in .*; wanted row, as asked now"
    with pytest.raises(OutputError, match=said):
        Run("a", first, Recipe.build({**SAME, "parameters": {}})).finished()
    with pytest.raises(OutputError, match=r"schedule block .*; wanted matrix"):
        Run("a", first, Recipe.build({**SAME, "schedule": "matrix"})).finished()


def test_what_a_record_of_the_first_version_says_can_be_built(first: Path) -> None:
    record = read_record(first)
    assert record is not None
    assert Recipe.build(record.recipe).spelled_out() == record.recipe


def two_stages() -> RunRecord:
    """A run that pruned the MLP by SparseGPT, then the attention by Wanda."""
    stages = [
        {"method": "sparsegpt", "pattern": "2:4", "include": "mlp"},
        {"method": "wanda", "pattern": "50%", "include": "attn"},
    ]
    recipe = Recipe.build({"model": "m", "calibration": "c", "text": "t", "stages": stages})
    made = make_record()
    return made.model_copy(
        update={
            "settings": recipe.run_options(),
            "stages": tuple(
                StageRecord(
                    kind=stage.kind,
                    settings=stage.stage_options(),
                    blocks=made.blocks[: number + 1],
                    seconds=2.0,
                    notices=(f"stage {number}", "both"),
                )
                for number, stage in enumerate(recipe.stages)
            ),
        }
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    for record in (make_record(), two_stages()):
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
        written = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
        assert written["format"] == "secateur/run/2"
        assert not {"recipe", "blocks", "notices"} & written.keys()


def test_a_record_of_two_stages() -> None:
    record = two_stages()
    assert (record.method, record.pattern) == ("sparsegpt + wanda", "2:4 + 50%")
    assert record.blocks == record.stages[1].blocks
    assert record.notices == ("stage 0", "both", "stage 1")
    assert Recipe.build(record.recipe).spelled_out() == record.recipe
    selection = record.selection
    assert selection is not None
    assert str(selection.pattern_of(0, "layers.0.mlp.up_proj.weight")) == "2:4"
    assert str(selection.pattern_of(0, "layers.0.self_attn.q_proj.weight")) == "50%"
    assert selection.pattern_of(0, "layers.0.router.weight") is None
    assert str(selection) == "2:4, by matrix; then 50%, by matrix"


def test_a_record_of_two_stages_is_reported() -> None:
    (comparison,) = side_by_side([two_stages()])
    (row,) = comparison.rows
    assert (row.name, row.pattern) == ("sparsegpt + wanda", "2:4 + 50%")
    page = render([two_stages()])
    assert "sparsegpt + wanda" in page
    assert "--recipe sparsegpt_wanda-2of4_50.yaml" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "secateur/run/3"}, "its format is 'secateur/run/3'"),
        ({"format": "x" * 500}, "none later than 'secateur/run/2'"),
        ({"format": "secateur/run/1"}, "it has no recipe"),
        ({"stages": [{"kind": "prune", "settings": 3}]}, "stages.0.settings"),
        ({"stages": 3}, "stages"),
        ({"settings": []}, "settings"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "run.json"
    facts = {**json.loads(make_record().model_dump_json()), **changes}
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_record(tmp_path)
    line = str(caught.value)
    assert said in line
    assert "\n" not in line
    assert len(line) < 500
