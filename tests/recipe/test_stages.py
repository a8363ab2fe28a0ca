"""A recipe as a list of stages: what is read, what is refused, that kinds can be added."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from secateur.errors import RecipeError
from secateur.recipe import Recipe
from secateur.recipe import stage as stages
from secateur.recipe.differences import deciding, differences
from secateur.recipe.setting import Mark, Setting
from secateur.recipe.stage import Stage, register
from secateur.recipe.yaml_file import read_yaml

TWO: dict[str, Any] = {
    "model": "m",
    "calibration": "c4",
    "seed": 3,
    "stages": [
        {"kind": "prune", "method": "sparsegpt", "pattern": "2:4", "include": "mlp"},
        {"method": "wanda", "pattern": 0.5, "exclude": ["mlp"]},
    ],
}


def complaint(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.build({**TWO, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_stage_is_a_recipe_of_the_same_run() -> None:
    recipe = Recipe.build(TWO)
    assert recipe.title == "sparsegpt + wanda"
    first, second = recipe.by_stage
    assert (first.method, first.pattern, first.include) == ("sparsegpt", "2:4", ["mlp"])
    assert (second.method, second.pattern, second.exclude) == ("wanda", "50%", ["mlp"])
    assert {one.seed for one in recipe.by_stage} == {3}
    alone = {"model": "m", "calibration": "c4", "seed": 3, "method": "sparsegpt", "include": "mlp"}
    assert first.spelled_out() == Recipe.build(alone).spelled_out()


def test_a_recipe_file_has_stages_and_what_is_spelled_out_makes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: m\ncalibration: c4\nseed: 3\nstages:\n"
        "  - {method: sparsegpt, pattern: 2:4, include: mlp}\n"
        "  - {method: wanda, pattern: 50%, exclude: mlp}\n",
        encoding="utf-8",
    )
    recipe = Recipe.build(read_yaml(path))
    again = Recipe.build(recipe.spelled_out())
    assert again.spelled_out() == recipe.spelled_out()
    assert [stage["kind"] for stage in recipe.spelled_out()["stages"]] == ["prune", "prune"]
    assert recipe.spelled_out()["stages"][1]["parameters"] == {
        "competition": "row", "variant": False
    }  # fmt: skip


def test_a_list_of_one_stage_is_a_flat_recipe() -> None:
    flat = {"model": "m", "calibration": "c4", "method": "wanda", "pattern": "4:8"}
    listed = {"model": "m", "calibration": "c4", "stages": [{"method": "wanda", "pattern": "4:8"}]}
    assert Recipe.build(listed) == Recipe.build(flat)
    assert Recipe.build(listed).by_stage == (Recipe.build(flat),)
    assert Recipe.build(flat).every_stage == (Recipe.build(flat),)


def test_sequences_are_written_for_all_stages_if_one_is_at_its_best() -> None:
    best = [{"method": "wanda"}, {"method": "wanda++", "effort": "best"}]
    recipe = Recipe.build({**TWO, "samples": 4, "stages": best})
    assert [one.chosen_written for one in recipe.by_stage] == [12, 12]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "wanda"}, "method beside stages: put each into the stage that it is for"),
        ({"pattern": "2:4", "include": ["a"]}, "pattern, include beside stages"),
        ({"stages": []}, "stages=[], wanted a list of stages"),
        ({"stages": "wanda"}, "stages='wanda', wanted a list of stages"),
        ({"stages": [{"method": "wanda"}, 3]}, "stage 2: 3, wanted settings"),
        ({"stages": [{"kind": "quantise"}]}, "stage 1: unknown kind of stage 'quantise'"),
        ({"stages": [{"kind": "quantise"}]}, "wanted one of prune"),
        ({"stages": [{"kind": ["prune"]}]}, "unknown kind of stage ['prune']"),
        ({"stages": [{"method": "wnada"}]}, "stage 1: unknown method 'wnada'"),
        ({"stages": [{"seed": 3}]}, "stage 1: unknown key 'seed'"),
        ({"stages": [{"patern": "2:4"}]}, "did you mean 'pattern'?"),
        (
            {"stages": [{"method": "gblm"}, {"method": "wanda"}], "save_gradients": "g"},
            "a file of gradients is of one model, and stages change it: no save_gradients",
        ),
    ],
)
def test_what_is_refused_and_what_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in complaint(**changes)


def test_the_faults_of_all_stages_come_together() -> None:
    line = complaint(
        samples=0,
        stages=[{"method": "wnada"}, {"pattern": "4:2"}, {"parameters": {"aplha": 1}}],
    )
    assert line.startswith("4 faults in the options: ")
    for part in ("samples=0", "stage 1: ", "stage 2: pattern '4:2'", "stage 3: unknown key"):
        assert part in line


def test_differences_name_the_stage() -> None:
    other = {**TWO, "stages": [TWO["stages"][0], {**TWO["stages"][1], "pattern": "60%"}]}
    asked, told = (deciding(Recipe, Recipe.build(one).spelled_out()) for one in (other, TWO))
    (difference,) = differences(asked, told)
    assert str(difference) == "stage 2 pattern 50%, not 60%"


def test_the_order_of_patterns_is_a_difference() -> None:
    """The first expression that matches decides."""
    one, other = (
        {**TWO, "stages": [{"method": "wanda", "patterns": patterns}]}
        for patterns in ({"mlp": "2:4", "up": "4:8"}, {"up": "4:8", "mlp": "2:4"})
    )
    asked, told = (deciding(Recipe, Recipe.build(values).spelled_out()) for values in (one, other))
    assert [difference.name for difference in differences(asked, told)] == ["patterns"]


# --- kinds that are yet to come ---


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> type[Stage]:
    """A kind of stage that this package has not."""
    monkeypatch.setattr(stages, "_KINDS", dict(stages._KINDS))

    @register
    class Rounding(Stage):
        kind: ClassVar[str] = "round"
        bits: Annotated[int, Setting(Mark.RESULT)] = 4
        """Bits of a weight."""
        scratch: Annotated[str, Setting(Mark.PLACE)] = "here"
        """Where it computes."""

    return Rounding


def test_a_kind_needs_no_change_of_the_recipe(rounding: type[Stage]) -> None:
    recipe = Recipe.build({**TWO, "stages": [TWO["stages"][0], {"kind": "round", "bits": 3}]})
    assert isinstance(recipe.stages[1], rounding)
    assert recipe.spelled_out()["stages"][1] == {"kind": "round", "bits": 3, "scratch": "here"}
    assert recipe.title == "sparsegpt + round"
    facts = deciding(Recipe, recipe.spelled_out())
    assert facts["stage 2 bits"] == 3
    assert "stage 2 scratch" not in facts
    assert "stage 1: unknown key 'bit'" in complaint(stages=[{"kind": "round", "bit": 3}])


def test_a_name_is_registered_once(rounding: type[Stage]) -> None:
    with pytest.raises(ValueError, match="two kinds of stages are called 'round'"):
        register(rounding)
