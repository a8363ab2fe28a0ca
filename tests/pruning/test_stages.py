"""Several stages in one run: each on the result of the one before, measured against the first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import secateur
from secateur.blocks import sweep
from secateur.errors import CheckpointError, RecipeError
from secateur.progress import Quiet
from secateur.pruning import pipeline
from secateur.recipe import Recipe
from secateur.record import RunRecord
from secateur.record.check import check_folder
from tiny import BLOCKS, Command, fingerprint, make_model

STAGES: list[dict[str, Any]] = [
    {"method": "sparsegpt", "pattern": "2:4", "include": "mlp"},
    {"method": "wanda++", "pattern": "50%", "include": "self_attn", "regional": {"rounds": 1}},
    {"method": "magnitude", "pattern": "60%", "include": "q_proj"},
]


@pytest.fixture
def values(llama_folder: Path, tokens_file: Path) -> dict[str, Any]:
    """A short run of three stages, everything but its `out`."""
    return {
        "model": str(llama_folder), "calibration": str(tokens_file), "text": str(tokens_file),
        "samples": 8, "sequence_length": 32, "stages": STAGES,
    }  # fmt: skip


def prune(values: dict[str, Any], progress: Quiet | None = None, **changes: Any) -> RunRecord:
    return pipeline.run_pruning(Recipe.build({**values, **changes}), progress)


def weights_of(folder: Path) -> dict[str, str]:
    return {name: bits for name, bits in fingerprint(folder).items() if name != "run.json"}


def by_hand(values: dict[str, Any], folder: Path) -> list[RunRecord]:
    """The same stages as runs of their own, each from the folder of the one before."""
    records, model = [], values["model"]
    for number, stage in enumerate(STAGES):
        flat = {key: value for key, value in values.items() if key != "stages"}
        out = folder / f"hand-{number}"
        records.append(prune({**flat, **stage}, model=model, out=str(out)))
        model = str(out)
    return records


def test_each_stage_goes_on_with_the_result_of_the_one_before(
    values: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = prune(values, out=str(out))
    alone = by_hand(values, tmp_path)
    assert weights_of(out) == weights_of(tmp_path / "hand-2")
    assert [stage.title for stage in record.stages] == ["sparsegpt", "wanda++", "magnitude"]
    for stage, single in zip(record.stages, alone, strict=True):
        counted = [[m.model_dump() for m in block.matrices] for block in stage.blocks]
        assert counted == [[m.model_dump() for m in block.matrices] for block in single.blocks]
    assert record.seconds == sum(stage.seconds for stage in record.stages)
    assert record.settings["model"] == values["model"]
    assert record == RunRecord.model_validate_json((out / "run.json").read_bytes())
    assert sorted(os.listdir(tmp_path)) == ["hand-0", "hand-1", "hand-2", "out"]
    proof = check_folder(str(out), None)  # by its own record
    assert (proof.failing, proof.changed) == ((), ())
    shares = {kind.kind: kind.zeros / kind.weights for kind in proof.kinds}
    assert (shares["mlp.up_proj"], shares["self_attn.k_proj"]) == (0.5, 0.5)
    assert shares["self_attn.q_proj"] == pytest.approx(0.6, abs=0.02)


def test_it_is_measured_against_the_dense_model(values: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (along,) = prune(values, out=str(out)).evaluations
    found = secateur.evaluate(out, text=values["text"], against=values["model"], sequence_length=32)
    assert found.model_dump(exclude={"seconds"}) == along.model_dump(exclude={"seconds"})
    (measured,) = prune(values).evaluations  # nothing is written
    assert measured.model_dump(exclude={"seconds"}) == along.model_dump(exclude={"seconds"})
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_recorded_is_repeated(values: dict[str, Any], tmp_path: Path) -> None:
    record = prune(values, out=str(tmp_path / "out"))
    again = Recipe.build({**record.recipe, "out": str(tmp_path / "again")})
    assert pipeline.run_pruning(again).files == record.files


def test_a_model_in_memory(values: dict[str, Any], tmp_path: Path, tokens: torch.Tensor) -> None:
    """What the folders between the stages round, a model in float32 on disk does not."""
    model = make_model("llama")
    model.save_pretrained(tmp_path / "model")
    without = {key: value for key, value in values.items() if key not in ("model", "calibration")}
    folder = prune({**values, "model": str(tmp_path / "model")}, out=str(tmp_path / "out"))
    recipe = Recipe.build({**without, "model": "in memory", "calibration": "tokens in memory"})
    memory = pipeline.prune_in_place(model, recipe, None, tokens[:8])
    assert [stage.title for stage in memory.stages] == ["sparsegpt", "wanda++", "magnitude"]
    assert memory.zeros == folder.zeros
    (along,), (found,) = memory.evaluations, folder.evaluations
    assert along.perplexity == pytest.approx(found.perplexity, rel=1e-6)
    assert along.dense_perplexity == pytest.approx(found.dense_perplexity, rel=1e-6)
    assert along.divergence == pytest.approx(found.divergence, rel=1e-4)


def test_the_doors_take_stages(values: dict[str, Any], tmp_path: Path, command: Command) -> None:
    model = values.pop("model")
    run = secateur.prune(model, out=tmp_path / "out", **values)
    assert run.method == "sparsegpt + wanda++ + magnitude"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    status, out, _ = command("prune", model, "--recipe", recipe, "--dry-run")
    assert (status, out.count("weights to prune"), out.count("nothing was done")) == (0, 3, 1)
    status, out, err = command("prune", model, "--recipe", recipe, "--out", tmp_path / "again")
    assert (status, "perplexity" in out) == (0, True), err
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "out")
    status, _, err = command("prune", model, "--recipe", recipe, "--method", "wanda")
    assert (status, err.count("\n")) == (2, 1)
    assert "method beside stages" in err


# --- going on ---


@contextmanager
def stopped(after: int) -> Iterator[None]:
    """Inside, the run is interrupted while it prunes another block after so many."""
    real, pruned = sweep.new_weights, list[int]()

    def new_weights(block: Any, *args: Any) -> Any:
        if len(pruned) == after:
            raise KeyboardInterrupt
        pruned.append(block.index)
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(KeyboardInterrupt):
            yield


class Told(Quiet):
    """Remembers which blocks were pruned."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.notices: list[str] = []

    def block(self, **facts: Any) -> None:
        if "block" in facts:
            self.blocks.append(facts["block"])

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.mark.parametrize(
    ("after", "left"),
    [(2, [1, 2, 0, 1, 2, 0, 1, 2]), (BLOCKS + 2, [1, 2, 0, 1, 2]), (2 * BLOCKS + 2, [1, 2])],
)
def test_it_goes_on_within_the_stage_that_was_interrupted(
    values: dict[str, Any], tmp_path: Path, after: int, left: list[int]
) -> None:
    whole = prune(values, out=str(tmp_path / "whole"))
    with stopped(after):
        prune(values, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    told = Told()
    record = prune(values, told, out=str(tmp_path / "out"))
    assert told.blocks in (left, left[1:])  # a block is written while the next one is pruned
    assert record.files == whole.files
    assert [stage.blocks[0].matrices for stage in record.stages] == [
        stage.blocks[0].matrices for stage in whole.stages
    ]
    (along,), (expected,) = record.evaluations, whole.evaluations
    assert along.model_dump(exclude={"seconds"}) == expected.model_dump(exclude={"seconds"})
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_nothing_finished_leaves_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    with stopped(0):
        prune(values, out=str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_an_error_names_its_stage_and_no_folder_that_is_hidden(
    values: dict[str, Any], tmp_path: Path
) -> None:
    real, runs = sweep.new_weights, list[int]()

    def new_weights(block: Any, *args: Any) -> Any:
        runs.append(block.index)
        if len(runs) > BLOCKS:
            read = tmp_path / ".out.stages" / "stage-1" / "model.safetensors"
            raise CheckpointError("it is gone", where=read)
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(CheckpointError) as fault:
            prune(values, out=str(tmp_path / "out"))
    assert str(fault.value) == "stage 2: it is gone in the result of stage-1/model.safetensors"


def test_another_run_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with stopped(BLOCKS + 2):
        prune(values, out=str(tmp_path / "out"))
    moved = shutil.copytree(values["model"], tmp_path / "moved")
    other = [*STAGES[:2], {**STAGES[2], "pattern": "70%"}]
    with pytest.raises(RecipeError, match=r"stage 3 pattern 60%, not 70%.*--restart"):
        prune(values, out=str(tmp_path / "out"), stages=other)
    with pytest.raises(RecipeError, match=r"held-out tokens \w+\.\.\., not none"):
        prune(values, out=str(tmp_path / "out"), text=None)
    told = Told()
    prune(values, told, out=str(tmp_path / "out"), model=str(moved))  # the same weights elsewhere
    assert told.blocks in ([1, 2, 0, 1, 2], [2, 0, 1, 2])
    prune(values, out=str(tmp_path / "out"), stages=other, overwrite=True, restart=True)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["stages"][2]["settings"]["pattern"] == "70%"


def test_a_stage_that_does_not_fit_is_told_before_anything_is_done(
    values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(secateur.SecateurError, match="no matrix has 'a b' in its name"):
        prune(
            values, out=str(tmp_path / "out"), stages=[STAGES[0], {**STAGES[1], "include": "a b"}]
        )
    assert os.listdir(tmp_path) == []
