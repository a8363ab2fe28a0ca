"""Recipes: what is read, what is refused, and that every fault is told at once, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import methods
from secateur.errors import RecipeError
from secateur.recipe import Recipe, Regional
from secateur.recipe.yaml_file import read_value, read_yaml
from secateur.sparsity import NofM, Unstructured

GOOD: dict[str, Any] = {"model": "m", "method": "wanda++", "calibration": "c4", "out": "o"}


def complaint(values: dict[str, Any]) -> str:
    """What is said of values that make no recipe; always one line."""
    with pytest.raises(RecipeError) as caught:
        Recipe.build(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_all_that_has_no_default() -> None:
    recipe = Recipe.build({"model": "m", "calibration": "c4"})
    assert (recipe.method, recipe.pattern, recipe.preset) == ("wanda++", "2:4", "auto")
    assert (recipe.samples, recipe.sequence_length, recipe.seed) == (128, 2048, 0)
    assert recipe.out is None
    assert recipe.chosen_method is methods.get("wanda++")
    assert recipe.chosen_pattern == NofM(2, 4)
    assert recipe.chosen_regional == Regional()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples=0, wanted at least 1"),
        ({"samples": "many"}, "samples='many', wanted a whole number"),
        ({"samples": True}, "samples=True, wanted a whole number"),
        ({"parameters": {"alpha": True}}, "parameters.alpha=True, wanted a number"),
        ({"regional": {"rounds": False}}, "regional.rounds=False, wanted a whole number"),
        ({"sequence_length": 1}, "sequence_length=1, wanted at least 2"),
        ({"seed": -1}, "seed=-1, wanted at least 0"),
        ({"seed": 2**70}, "wanted less than 4294967296"),
        ({"batch_size": 0}, "batch_size=0, wanted at least 1"),
        ({"dtype": "int8"}, "dtype='int8', wanted one of auto, float32, bfloat16, float16"),
        (
            {"preset": "papers"},
            "preset='papers', wanted one of auto, paper (did you mean 'paper'?)",
        ),
        ({"preset": ["paper"]}, "preset=['paper'], wanted one of auto, paper"),
        ({"effort": "most"}, "effort='most', wanted one of fast, balanced, best"),
        ({"effort": "best", "preset": "paper"}, "preset paper sets its own rounds"),
        ({"model": 3}, "model=3, wanted text"),
        ({"also_text": "b"}, "also_text is measured beside text: give both"),
        ({"also_text": 5, "text": "a"}, "also_text=5, wanted a list"),
        ({"also_text": ["b", "a"], "text": "a"}, "a held-out text is named twice"),
        ({"method": None}, "method=None, wanted text"),
        ({"method": "wnada"}, "unknown method 'wnada'; wanted one of "),
        ({"method": "wnada"}, "(did you mean 'wanda'?)"),
        ({"pattern": "4:2"}, "pattern '4:2' keeps 4 of 2 weights"),
        ({"pattern": "0%"}, "prunes 0 %"),
        ({"pattern": "abc"}, "pattern 'abc' cannot be read; wanted a ratio such as 50%"),
        ({"pattern": ["2:4"]}, "pattern=['2:4'], wanted text"),
        ({"sampels": 3}, "unknown key 'sampels'"),
        ({"sampels": 3}, "(did you mean 'samples'?)"),
        ({"parameters": {"aplha": 1}}, "unknown key 'parameters.aplha'"),
        ({"parameters": {"aplha": 1}}, "(did you mean 'alpha'?)"),
        ({"parameters": {"alpha": -1}}, "parameters.alpha=-1, wanted at least 0"),
        ({"parameters": {"alpha": float("nan")}}, "parameters.alpha=nan, wanted a finite number"),
        ({"parameters": {"alpha": "big"}}, "parameters.alpha='big', wanted a number"),
        (
            {"parameters": {"competition": "rows"}},
            "parameters.competition='rows', wanted 'row' or 'layer'",
        ),
        ({"parameters": [1]}, "parameters=[1], wanted settings by their names"),
        ({"regional": {"rouns": 1}}, "unknown key 'regional.rouns'"),
        ({"regional": {"rouns": 1}}, "(did you mean 'rounds'?)"),
        ({"regional": {"rounds": 0}}, "regional.rounds=0, wanted at least 1"),
        ({"regional": {"step": 1, "learning_rate": 1}}, "leave one out"),
        ({"regional": {"step": 1}, "preset": "paper"}, "leave one out"),
        ({"regional": "slow"}, "regional='slow', wanted settings by their names"),
        ({"calibration": None}, "method wanda++ needs calibration text: give calibration"),
        ({"method": "wanda", "regional": {"rounds": 1}}, "method wanda has no regional optimiser"),
        ({"method": "wanda", "parameters": {"alpha": 1}}, "unknown key 'parameters.alpha'"),
        (
            {"method": "wanda", "parameters": {"variant": True}},
            "variant=true chooses a ratio per row, which pattern 2:4 fixes",
        ),
    ],
)
def test_what_is_refused_and_what_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in complaint({**GOOD, **changes})


def test_a_missing_model_is_said() -> None:
    assert "model is missing" in complaint({"method": "magnitude"})


def test_all_faults_at_once() -> None:
    line = complaint(
        {
            "method": "wnada",
            "pattern": "4:2",
            "samples": 0,
            "dtype": "int8",
            "preset": "papr",
            "nonsense": 1,
        }
    )
    assert line.startswith("7 faults in the options: ")
    assert line.count(" | ") == 6
    for part in ("model is", "'wnada'", "'4:2'", "samples=0", "'int8'", "'papr'", "'nonsense'"):
        assert part in line


def test_faults_of_parameters_and_regional_come_together() -> None:
    line = complaint({**GOOD, "parameters": {"alpha": -1}, "regional": {"rounds": 0, "bogus": 1}})
    assert line.startswith("3 faults in the options: ")


def test_the_origin_is_named() -> None:
    with pytest.raises(RecipeError, match=r"samples=0.* in run\.yaml$"):
        Recipe.build({**GOOD, "samples": 0}, "run.yaml")


def test_a_huge_value_is_not_repeated_whole() -> None:
    nested: list[Any] = ["x"]
    for _ in range(60):
        nested = [nested, nested]  # 2**60 leaves, as YAML aliases can make them
    for key in ("model", "method", "pattern", "samples", "parameters", "regional", "preset"):
        assert len(complaint({**GOOD, key: nested})) < 1000
    assert len(complaint({**GOOD, "samples": "x" * 10_000})) < 1000


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*Recipe.model_fields, "unknown"]), _values))
def test_any_values_make_a_recipe_or_a_complaint(changes: dict[str, Any]) -> None:
    said = ""
    try:
        recipe = Recipe.build({**GOOD, **changes})
        assert recipe.spelled_out()["method"] == recipe.method
    except RecipeError as fault:
        said = str(fault)
    assert "\n" not in said


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.build(GOOD).samples = 3  # type: ignore[misc]


# --- defaults, presets, the record ---


def test_presets_and_changes_over_them() -> None:
    paper = Recipe.build({**GOOD, "preset": "paper"}).chosen_regional
    assert (paper.optimizer, paper.learning_rate, paper.hold_mask) == ("rmsprop", 3e-7, False)
    slower = Recipe.build({**GOOD, "preset": "paper", "regional": {"learning_rate": 1e-8}})
    assert slower.chosen_regional == paper.model_copy(update={"learning_rate": 1e-8})
    auto = Recipe.build({**GOOD, "regional": {"rounds": 2}}).chosen_regional
    assert auto == Regional(rounds=2)


def test_spelled_out_holds_every_default() -> None:
    facts = Recipe.build(GOOD).spelled_out()
    assert facts.keys() == Recipe.model_fields.keys() - {"stages"}
    assert facts["parameters"] == {"alpha": 100.0, "by_block": True, "competition": "row"}
    assert facts["regional"] == Regional().model_dump()
    assert (facts["samples"], facts["seed"], facts["dtype"]) == (128, 0, "auto")


def test_spelled_out_has_no_regional_where_there_is_none() -> None:
    recipe = Recipe.build({"model": "m", "method": "magnitude"})
    assert recipe.spelled_out()["regional"] == {}
    assert recipe.spelled_out()["parameters"] == {"competition": "layer"}


@pytest.mark.parametrize("method", [method.name for method in methods.every()])
@pytest.mark.parametrize("preset", ["auto", "paper"])
def test_what_is_spelled_out_makes_the_same_run(method: str, preset: str) -> None:
    if (method, preset) == ("alps-ro", "paper"):
        with pytest.raises(RecipeError, match="no score to choose another mask by"):
            Recipe.build({**GOOD, "method": method, "preset": preset})
        return
    if preset == "paper" and methods.get(method).refine is not methods.Refine.REGIONAL:
        with pytest.raises(RecipeError, match="no regional optimiser: leave preset out"):
            Recipe.build({**GOOD, "method": method, "preset": preset})
        return
    recipe = Recipe.build({**GOOD, "method": method, "preset": preset})
    again = Recipe.build(recipe.spelled_out())
    assert again.spelled_out() == recipe.spelled_out()
    assert again.chosen_params == recipe.chosen_params
    if recipe.refines:  # who has no optimiser has no settings of one
        left = again.chosen_regional.model_dump(exclude={"step"})
        assert left == recipe.chosen_regional.model_dump(exclude={"step"})


# --- YAML ---


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_recipe_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        model: ./llama
        method: wanda++        # with its parameters
        pattern: 2:4
        calibration: c4
        parameters: {alpha: 10}
        preset: paper
        regional:
          rounds: 3
          learning_rate: 3e-7
        """,
    )
    recipe = Recipe.build(read_yaml(path))
    assert recipe.chosen_pattern == NofM(2, 4)
    assert recipe.chosen_params.model_dump()["alpha"] == 10
    assert (recipe.chosen_regional.rounds, recipe.chosen_regional.learning_rate) == (3, 3e-7)


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("2:4", NofM(2, 4)),  # to base 60 in YAML 1.1
        ('"2:4"', NofM(2, 4)),
        ("16:32", NofM(16, 32)),
        ("0.5", Unstructured(0.5)),
        (".25", Unstructured(0.25)),
        ("5e-1", Unstructured(0.5)),
        ("50%", Unstructured(0.5)),
    ],
)
def test_patterns_need_no_quotes(tmp_path: Path, written: str, pattern: object) -> None:
    path = write(tmp_path, f"model: m\nmethod: magnitude\npattern: {written}\n")
    assert Recipe.build(read_yaml(path)).chosen_pattern == pattern


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "the file holds a list"),
        ("just words", "the file holds a str"),
        ("", "the file holds nothing"),
        ("model: [unclosed", "not a YAML file"),
        ("model: m\n\tmethod: magnitude", "not a YAML file"),
        ("a: &a [*a, *b]", "not a YAML file"),
        ("model: !!python/object/apply:os.system ['echo']", "not a YAML file"),
        ("model: !!python/name:os.system", "not a YAML file"),
        ("!!python/object/new:dict [[model, m]]", "not a YAML file"),
        ("day: 2020-99-99", "not a YAML file"),
        ("\x00", "not a YAML file"),
        ("[" * 1200, "not a YAML file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        read_yaml(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    path = write(tmp_path, f"model: !!python/object/apply:os.mkdir ['{planted}']")
    with pytest.raises(RecipeError, match="not a YAML file"):
        read_yaml(path)
    assert read_value(f"!!python/object/apply:os.mkdir ['{planted}']").startswith("!!python")
    assert not planted.exists()


def test_no_such_file_a_folder_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="not a YAML file"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9t\xe9")
    with pytest.raises(RecipeError, match="not a YAML file"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        ("3e-7", 3e-7),
        ("3E7", 3e7),
        ("-1.5e3", -1500.0),
        ("1.e2", 100.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("l1", "l1"),
        ("layer", "layer"),
        ("'3'", "3"),
        ("2:4", "2:4"),
        ("1e", "1e"),
        ("e7", "e7"),
        ("007", "007"),
        ("[1, 2e0]", [1, 2.0]),
        ("[1,", "[1,"),
        (": :", ": :"),
        ("2020-99-99", "2020-99-99"),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)
