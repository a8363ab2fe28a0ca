"""Training as the last stage of a recipe: one command does what two commands do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import secateur
import tiny
from secateur.errors import NumericalError, RecipeError
from secateur.pruning.pipeline import prune_in_place
from secateur.recipe import Recipe
from secateur.record import RunRecord, read_record
from secateur.record.check import check_folder
from secateur.recovery import training
from secateur.reporting import as_measured, side_by_side
from tiny import Command

PRUNING: dict[str, Any] = {"method": "wanda", "pattern": "2:4"}
TRAINING: dict[str, Any] = {
    "train": "weights", "objective": "distill", "steps": 6, "batch_size": 4, "samples": 12,
    "validation": 4, "learning_rate": 1e-2, "evaluate_every": 2,
}  # fmt: skip


def counting(path: Path, seed: int) -> str:
    """Sequences that count upwards, in a file."""
    starts = torch.randint(4, 60, (24, 1), generator=torch.Generator().manual_seed(seed))
    save_file({"input_ids": starts + torch.arange(32)}, path)
    return str(path)


@pytest.fixture
def values(llama_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A short run of two stages, everything but its `out`."""
    texts = tmp_path / "texts"
    texts.mkdir()
    return {
        "model": str(llama_folder), "calibration": counting(texts / "calibration.safetensors", 0),
        "text": counting(texts / "held.safetensors", 1), "windows": 4,
        "also_text": [counting(texts / "also.safetensors", 2)],
        "samples": 8, "sequence_length": 32, "stages": [PRUNING, {"kind": "recover", **TRAINING}],
    }  # fmt: skip


def by_hand(values: dict[str, Any], folder: Path) -> RunRecord:
    """The same by the two commands."""
    run = {key: value for key, value in values.items() if key != "stages"}
    secateur.prune(**run, **PRUNING, out=folder / "pruned")
    return secateur.recover(
        folder / "pruned", text=values["calibration"], out=folder / "recovered",
        heldout=values["text"], windows=4, sequence_length=32, **TRAINING,
    )  # fmt: skip


def test_one_command_does_what_two_do(values: dict[str, Any], tmp_path: Path) -> None:
    here, there = secateur.prune(**values, out=tmp_path / "out"), by_hand(values, tmp_path)
    one, other = tiny.weights_of(tmp_path / "out"), tiny.weights_of(tmp_path / "recovered")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert here.recovery is not None
    assert there.recovery is not None
    for name in ("dense", "pruned", "recovered"):
        measured = [getattr(one.recovery, name).perplexity for one in (here, there)]
        assert measured[0] == measured[1]
    assert [measured.protocol.source for measured in here.recovery.also] == values["also_text"]
    assert [e.perplexity for e in here.evaluations] == [e.perplexity for e in there.evaluations]
    assert here == read_record(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "pruned", "recovered", "texts"]
    proof = check_folder(str(tmp_path / "out"), None)
    assert (proof.failing, proof.changed, proof.misstated) == ((), (), ())
    assert 0 < here.recovery.zeros_before == here.recovery.zeros_after


def test_the_record_says_what_was_done_and_repeats_it(
    values: dict[str, Any], tmp_path: Path
) -> None:
    record = secateur.prune(**values, out=tmp_path / "out")
    assert [stage.kind for stage in record.stages] == ["prune", "recover"]
    assert (record.method, record.pattern, record.sparsity) == ("wanda", "2:4", 0.5)
    assert record.recovery is not None
    assert record.stages[1].seconds == record.recovery.seconds
    assert record.seconds == record.stages[0].seconds
    told = Recipe.build(record.recipe)
    assert (
        told.spelled_out() == Recipe.build({**values, "out": str(tmp_path / "out")}).spelled_out()
    )
    shown = as_measured(record)
    assert shown.seconds == record.seconds + record.recovery.seconds
    assert [e.dense_perplexity for e in shown.evaluations] == pytest.approx(
        [e.dense_perplexity for e in record.evaluations]
    )
    assert shown.mean_output_error is None
    assert record.mean_output_error is not None


@pytest.mark.parametrize("after", [0, 3])
def test_a_run_killed_in_the_training_goes_on_to_the_same_bits(
    after: int, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secateur.prune(**values, out=tmp_path / "whole")
    true, steps = training._Run.descend, 0

    def killed(run: Any) -> None:
        nonlocal steps
        if steps == after:
            raise KeyboardInterrupt
        steps += 1
        true(run)

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "descend", killed)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(**values, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.stages" / "stage-1" / "run.json").is_file()
    monkeypatch.setattr("secateur.pruning.pipeline._carry_out", pruned_again)
    record = secateur.prune(**values, out=tmp_path / "out")
    assert record.recovery is not None
    assert record.recovery.interruptions == int(after > 0)
    one, other = tiny.weights_of(tmp_path / "whole"), tiny.weights_of(tmp_path / "out")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(os.listdir(tmp_path)) == ["out", "texts", "whole"]


def test_with_other_settings_the_training_begins_anew_on_what_was_pruned(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune, diverging = values["stages"][0], {**values["stages"][1], "learning_rate": 1e30}
    with pytest.raises(NumericalError, match="a lower learning rate"):
        secateur.prune(**{**values, "stages": [prune, diverging]}, out=tmp_path / "out")
    monkeypatch.setattr("secateur.pruning.pipeline._carry_out", pruned_again)
    record = secateur.prune(**values, out=tmp_path / "out")
    assert record.recovery is not None
    assert record.recovery.interruptions == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "texts"]


def test_side_by_side_a_run_in_stages_is_what_two_commands_are(
    values: dict[str, Any], tmp_path: Path
) -> None:
    here, there = secateur.prune(**values, out=tmp_path / "out"), by_hand(values, tmp_path)
    rows = [
        side_by_side([record.model_copy(update={"evaluations": record.evaluations[:1]})])[0].rows
        for record in (here, there)
    ]
    assert [row.name for (row,) in rows] == ["wanda (recovered, distill)"] * 2


def pruned_again(*_: Any) -> None:
    raise AssertionError("a finished stage was done again")


def test_nothing_is_kept_of_a_run_that_only_measures(
    values: dict[str, Any], tmp_path: Path
) -> None:
    record = secateur.prune(**values)
    assert record.recovery is not None
    assert record.recovery.recovered is not None
    assert record.settings["out"] is None
    assert os.listdir(tmp_path) == ["texts"]


def test_a_result_is_replaced_only_if_that_was_asked(
    values: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(values["model"], out)
    before = tiny.fingerprint(out)
    with pytest.raises(secateur.SecateurError, match="overwrite"):
        secateur.prune(**values, out=out)
    assert tiny.fingerprint(out) == before
    assert secateur.prune(**values, out=out, overwrite=True).recovery is not None
    assert tiny.fingerprint(out) != before
    assert sorted(os.listdir(tmp_path)) == ["out", "texts"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stages": [{"kind": "recover"}]},
            "stage 1: recover goes last, after a stage that prunes",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover"}, PRUNING]},
            "stage 2: recover goes last, after a stage that prunes",
        ),
        ({"stages": [PRUNING, {"kind": "recover", "stesp": 3}]}, "did you mean 'steps'?"),
        (
            {"stages": [PRUNING, {"kind": "recover", "steps": 4, "warm_up": 4}]},
            "stage 2: warm_up=4 leaves none of 4 steps",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover", "block_weight": 0.5}]},
            "stage 2: block_weight goes with objective distill",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover", "targets": "q_porj"}]},
            "no block has a linear layer 'q_porj'",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover", "train": "weights", "rank": 4}]},
            "stage 2: rank and alpha go with train adapters",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover", "train": "norms", "targets": "q_proj"}]},
            "stage 2: targets are of matrices, and train is norms",
        ),
        (
            {"stages": [{"method": "magnitude"}, {"kind": "recover"}], "calibration": None},
            "stage 2: recover trains on the calibration: give calibration",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover"}], "calibration": None, "images": "i"},
            "stage 2: recover is for language models, and there are images",
        ),
        (
            {"stages": [PRUNING, {"kind": "recover", "steps": 10**6}], "sequence_length": 2048},
            "tokens to train on, wanted at most",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(
    changes: dict[str, Any], said: str, values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        secateur.prune(**{**values, **changes}, out=tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["texts"]


def test_a_model_in_memory_is_told_what_to_do(values: dict[str, Any]) -> None:
    model = tiny.make_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe.build({**values, "model": "m"})
    with pytest.raises(RecipeError, match="recover goes on with a folder"):
        prune_in_place(model, recipe)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_command_prints_both_stages(
    values: dict[str, Any], tmp_path: Path, command: Command
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "out": str(tmp_path / "out")}), encoding="utf-8")
    status, told, _ = command("prune", "--recipe", recipe, "--dry-run")
    assert status == 0
    assert "then                   recover" in told
    assert "weights, objective distill" in told
    assert "6 of 4 x 32 tokens, rate 0.01" in told
    assert told.endswith("nothing was done: this was a dry run\n")
    assert not (tmp_path / "out").exists()
    usual = {name: value for name, value in values.items() if name != "sequence_length"}
    (tmp_path / "usual.yaml").write_text(yaml.safe_dump(usual), encoding="utf-8")
    status, told, err = command("prune", "--recipe", tmp_path / "usual.yaml", "--dry-run")
    assert (status, "sequences are 64 tokens" in err) == (0, True), err
    assert "6 of 4 x 32 tokens" in told  # which is what the file has
    status, told, _ = command("prune", "--recipe", recipe)
    assert status == 0
    for said in ("pruned ", "recovered   perplexity", "taken back", "written to "):
        assert said in told
