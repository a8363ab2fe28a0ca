"""The contract of the marks: for every setting, whether a change of it is another run, by reader.

The readers are resuming (of pruning and of recovery), the comparison, and the report. Each is asked
about two runs that differ in one setting while all that settings name has the same content; then
about two runs with the same settings of which one thing has another content.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from records import make_evaluation, make_protocol, make_record, make_recovery
from secateur.checkpoint import Checkpoint, StreamedModel
from secateur.comparison.finished import refuse_another
from secateur.comparison.runs import Run
from secateur.errors import OutputError
from secateur.pruning import resume
from secateur.recipe import Recipe
from secateur.recipe.differences import deciding, differences, with_defaults
from secateur.recipe.prune_stage import PruneStage
from secateur.recipe.setting import Mark, names_of, setting_of
from secateur.record import RunRecord, write_record
from secateur.recovery.prepare import PreparedRecovery
from secateur.recovery.settings import Recovery
from secateur.reporting import side_by_side

BASE: dict[str, Any] = {"model": "m", "method": "wanda++", "pattern": "50%",
                        "calibration": "c", "text": "t"}  # fmt: skip
STAGES = [{"method": "wanda", "pattern": "2:4"}, {"method": "magnitude"}]
FLAT = {"method": "wanda", "pattern": "2:4"}

CHANGED: dict[str, dict[str, Any]] = {
    "model": {"model": "other"},
    "revision": {"revision": "v1"},
    "out": {"out": "o"},
    "method": {"method": "wanda++-ro"},
    "pattern": {"pattern": "60%"},
    "mend": {"mend": True, "pattern": "blocks-1", "method": "greedy"},
    "width_multiple": {"width_multiple": 8, "pattern": "ffn-20%", "method": "wanda"},
    "patterns": {"patterns": {"mlp": "60%"}},
    "include": {"include": ["mlp"]},
    "exclude": {"exclude": ["mlp"]},
    "blocks": {"blocks": "1-"},
    "dense_first": {"dense_first": 1},
    "calibration": {"calibration": "other"},
    "shares": {"shares": (2.0, 1.0)},
    "column": {"column": "body"},
    "images": {"images": "other", "calibration": None, "text": None},
    "samples": {"samples": 64},
    "sequence_length": {"sequence_length": 512},
    "bos": {"bos": "stream"},
    "seed": {"seed": 1},
    "text": {"text": "other"},
    "also_text": {"also_text": ["other"]},
    "windows": {"windows": 3},
    "parameters": {"parameters": {"alpha": 1.0}},
    "preset": {"preset": "paper"},
    "effort": {"effort": "fast"},
    "regional": {"regional": {"rounds": 1}},
    "written": {"written": 4},
    "allocation": {"allocation": "measured"},
    "schedule": {"schedule": "matrix"},
    "route_all": {"route_all": True},
    "expert_tokens": {"expert_tokens": 8},
    "quantize": {"quantize": "w4a16"},
    "quantize_by": {"quantize_by": "rtn"},
    "gradients": {"gradients": "g.safetensors"},
    "save_gradients": {"save_gradients": "g.safetensors"},
    "activations": {"activations": "host"},
    "block_inputs": {"block_inputs": "disk"},
    "batch_size": {"batch_size": 3},
    "dtype": {"dtype": "float32"},
    "device": {"device": "cpu"},
    "trust_remote_code": {"trust_remote_code": True},
    "overwrite": {"overwrite": True},
    "restart": {"restart": True},
    "stages": {"stages": [STAGES[0], {**STAGES[1], "include": ["mlp"]}]},
}
"""Field of a recipe -> values that change it."""
ON: dict[str, dict[str, Any]] = {
    "images": {**BASE, "calibration": None, "text": None, "images": "i"},
    "shares": {**BASE, "calibration": ["c", "d"]},
    "schedule": {**BASE, "method": "wanda"},
    "gradients": {**BASE, "method": "gblm"},
    "save_gradients": {**BASE, "method": "gblm"},
    "quantize_by": {**BASE, "quantize": "w4a16"},
    "stages": {"model": "m", "calibration": "c", "text": "t", "stages": STAGES},
}
"""Field -> what it is changed in, where that is not `BASE`."""

RECOVERY: dict[str, Any] = {"model": "m", "out": "o", "text": "t", "dense": "d"}
RECOVERY_CHANGED: dict[str, dict[str, Any]] = {
    "model": {"model": "other"},
    "revision": {"revision": "v1"},
    "out": {"out": "other"},
    "text": {"text": "other"},
    "shares": {"shares": (2.0, 1.0)},
    "column": {"column": "body"},
    "heldout": {"heldout": "other"},
    "windows": {"windows": 3, "heldout": "h"},
    "dense": {"dense": "other"},
    "result": {"result": "adapters"},
    "train": {"train": "norms"},
    "objective": {"objective": "distill"},
    "block_weight": {"objective": "distill", "block_weight": 0.5},
    "rank": {"rank": 4},
    "alpha": {"alpha": 3.0},
    "targets": {"targets": "q_proj"},
    "steps": {"steps": 7},
    "learning_rate": {"learning_rate": 0.5},
    "warm_up": {"warm_up": 3},
    "batch_size": {"batch_size": 3},
    "accumulation": {"accumulation": 3},
    "weight_decay": {"weight_decay": 0.5},
    "gradient_norm": {"gradient_norm": 0.5},
    "samples": {"samples": 3},
    "sequence_length": {"sequence_length": 3},
    "bos": {"bos": "none"},
    "validation": {"validation": 3},
    "evaluate_every": {"evaluate_every": 3},
    "patience": {"patience": 3},
    "seed": {"seed": 3},
    "dtype": {"dtype": "bfloat16"},
    "device": {"device": "cuda"},
    "pattern": {"pattern": "2:4"},
    "trust_remote_code": {"trust_remote_code": True},
    "overwrite": {"overwrite": True},
    "resume": {"resume": True},
}
"""Setting of a recovery -> values that change it."""
RECOVERY_ON: dict[str, dict[str, Any]] = {
    "block_weight": {"objective": "distill"},
    "shares": {"text": ["t", "u"]},
}
"""Setting -> what it is changed in beside `RECOVERY`."""


def test_every_field_has_a_mark_and_a_change() -> None:
    assert CHANGED.keys() == Recipe.model_fields.keys()
    assert RECOVERY_CHANGED.keys() == Recovery.model_fields.keys()
    for settings in (Recipe, PruneStage, Recovery):
        assert set(names_of(settings, *Mark)) == settings.model_fields.keys()


def recipes(name: str) -> tuple[Recipe, Recipe]:
    """Two recipes that differ in one field."""
    base = ON.get(name, BASE)
    one, other = Recipe.build(base), Recipe.build({**base, **CHANGED[name]})
    assert getattr(one, name) != getattr(other, name)
    return one, other


def recoveries(name: str) -> tuple[Recovery, Recovery]:
    """Two recoveries that differ in one setting."""
    base = {**RECOVERY, **RECOVERY_ON.get(name, {})}
    one, other = Recovery.build(base), Recovery.build({**base, **RECOVERY_CHANGED[name]})
    assert getattr(one, name) != getattr(other, name)
    return one, other


# --- resuming ---


def identity(recipe: Recipe, **content: Any) -> dict[str, Any]:
    """What a run is known by, with all that its recipe names as it is, but for `content`."""
    tokens = {"calibration": "c" * 64, "heldout": "d" * 64, **content}
    prepared: Any = SimpleNamespace(
        recipe=recipe,
        folder=content.get("folder"),
        source=SimpleNamespace(
            dtype=content.get("dtype", torch.float32), device=torch.device("cpu")
        ),
        calibration=SimpleNamespace(protocol=SimpleNamespace(sha256=tokens["calibration"])),
        heldout=[SimpleNamespace(protocol=SimpleNamespace(sha256=tokens["heldout"]))],
    )
    return resume.identity(prepared)


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_resuming_asks_the_marks(name: str) -> None:
    one, other = recipes(name)
    another = bool(differences(identity(other), identity(one)))
    assert another == (setting_of(Recipe, name).mark is Mark.RESULT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"calibration": "e" * 64}, "calibration tokens cccccccccccc..., not eeeeeeeeeeee..."),
        ({"heldout": "e" * 64}, "held-out tokens dddddddddddd..., not eeeeeeeeeeee..."),
        ({"dtype": torch.bfloat16}, "precision float32, not bfloat16"),
    ],
)
def test_resuming_asks_for_content(content: dict[str, Any], said: str) -> None:
    recipe = Recipe.build(BASE)
    (difference,) = differences(identity(recipe, **content), identity(recipe))
    assert str(difference) == said


@pytest.mark.parametrize("name", Recovery.model_fields)
def test_resuming_a_recovery_asks_the_marks(name: str, llama_folder: Path) -> None:
    source = StreamedModel(Checkpoint(llama_folder), torch.device("cpu"), torch.float32)

    def known_by(settings: Recovery, tokens: str = "a" * 64) -> dict[str, Any]:
        prepared: Any = SimpleNamespace(
            settings=settings, source=source, folder=llama_folder,
            teacher=Checkpoint(llama_folder).source,
            text=SimpleNamespace(protocol=make_protocol(token_sha256=tokens)),
        )  # fmt: skip
        return PreparedRecovery.identity(prepared)

    one, other = recoveries(name)
    another = bool(differences(known_by(other), known_by(one)))
    assert another == (setting_of(Recovery, name).mark is Mark.RESULT)
    (difference,) = differences(known_by(one), known_by(one, "b" * 64))
    assert difference.name == "tokens"


# --- the comparison, which knows names only ---


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_a_comparison_asks_the_marks(name: str, tmp_path: Path) -> None:
    one, other = recipes(name)
    write_record(tmp_path, record_of(one))
    (tmp_path / "config.json").touch()
    decides = setting_of(Recipe, name).mark in (Mark.RESULT, Mark.CONTENT)
    run = Run("a", tmp_path, other)
    if not decides:
        assert run.finished() is not None
        return
    told = r"stage 2 include" if name == "stages" else name
    with pytest.raises(OutputError, match=rf"this run has .*{told}.*as asked now"):
        run.finished()


@pytest.mark.parametrize("name", Recovery.model_fields)
def test_a_comparison_of_recoveries_asks_the_marks(name: str, tmp_path: Path) -> None:
    one, other = (deciding(Recovery, settings.spelled_out()) for settings in recoveries(name))
    if setting_of(Recovery, name).mark in (Mark.PLACE, Mark.RUN):
        refuse_another(other, one, tmp_path)
        return
    with pytest.raises(OutputError, match=name):
        refuse_another(other, one, tmp_path)


def test_a_setting_that_is_newer_than_a_recovery_has_its_default() -> None:
    told = Recovery.build(RECOVERY).spelled_out()
    del told["gradient_norm"]
    assert with_defaults(Recovery, told) == Recovery.build(RECOVERY).spelled_out()


# --- the report, which knows hashes of tokens and names of models ---


def record_of(recipe: Recipe, **changes: Any) -> RunRecord:
    """The record of a run of a recipe, its tokens whatever the recipe calls them."""
    made = make_record(created=f"2026-01-01T00:00:00+00:0{len(changes)}")
    stages = tuple(
        made.stages[0].model_copy(update={"settings": one.stage_options()})
        for one in recipe.every_stage
    )
    settings = recipe.run_options()
    return made.model_copy(update={"settings": settings, "stages": stages, **changes})


LATER = {"created": "2026-02-01T00:00:00+00:00"}


def told_apart(*records: RunRecord) -> bool:
    """Whether a report has all of these runs, and merges none."""
    return sum(len(group.runs) for group in side_by_side(records)) == len(records)


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_a_report_asks_the_marks(name: str) -> None:
    one, other = recipes(name)
    decides = setting_of(Recipe, name).mark is Mark.RESULT or name == "model"
    assert told_apart(record_of(one), record_of(other, **LATER)) == decides


@pytest.mark.parametrize(
    "content",
    [
        {"calibration": make_protocol("c", "e" * 64)},
        {"evaluations": (make_evaluation(12, token_sha256="e" * 64),)},
        {"dtype": "bfloat16"},
    ],
    ids=["calibration", "text", "dtype"],
)
def test_a_report_asks_for_content(content: dict[str, Any]) -> None:
    recipe = Recipe.build(BASE)
    assert told_apart(record_of(recipe), record_of(recipe, **content, **LATER))
    assert not told_apart(record_of(recipe), record_of(recipe, **LATER))


@pytest.mark.parametrize("name", Recovery.model_fields)
def test_a_report_of_recoveries_asks_the_marks(name: str) -> None:
    pruned = record_of(Recipe.build(BASE))
    records = []
    for day, settings in enumerate(recoveries(name), 1):
        record = make_recovery(pruned, 12)
        assert record.recovery is not None
        told = {"settings": settings.spelled_out(), "created": f"2026-02-0{day}T00:00:00+00:00"}
        recovery = record.recovery.model_copy(update=told)
        records.append(record.model_copy(update={"recovery": recovery}))
    decides = setting_of(Recovery, name).mark is Mark.RESULT or name == "dense"
    assert told_apart(*records) == decides


def test_two_names_of_the_same_training_text_are_one() -> None:
    record = make_recovery(record_of(Recipe.build(BASE)), 12)
    assert record.recovery is not None
    moved = record.recovery.model_copy(
        update={
            "settings": {**record.recovery.settings, "text": "moved"},
            "created": "2026-02-01T00:00:00+00:00",
        }
    )
    again = record.model_copy(update={"recovery": moved})
    assert not told_apart(record, again)
    tokens = moved.text.model_copy(update={"token_sha256": "f" * 64})
    other = record.model_copy(update={"recovery": moved.model_copy(update={"text": tokens})})
    assert told_apart(record, other)
