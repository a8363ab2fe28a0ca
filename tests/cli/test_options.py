"""Every field of the settings is an option of its command, or it stands here why not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field

from secateur.cli.commands import app
from secateur.cli.options import SET, Fields, Given, options_of
from secateur.comparison.cliff_settings import CliffSettings
from secateur.comparison.settings import ComparisonSettings
from secateur.errors import RecipeError
from secateur.evaluation import EvaluationSettings
from secateur.inference import BenchSettings
from secateur.recipe import Recipe
from secateur.recipe.setting import Mark, Setting
from secateur.recipe.wording import option_name
from secateur.recipe.yaml_file import read_recipe
from secateur.recovery import Recovery

COMMANDS: Mapping[str, tuple[type[BaseModel], ...]] = {
    "prune": (Recipe,),
    "recover": (Recovery,),
    "evaluate": (EvaluationSettings,),
    "compare": (ComparisonSettings, Recipe),
    "bench": (BenchSettings,),
    "cliff": (CliffSettings,),
}
STAGES = "a list of records, each with settings of its own: it stands in a recipe file"
NO_OPTION: Mapping[str, Mapping[str, str]] = {
    "prune": {"stages": STAGES},
    "recover": {},
    "evaluate": {},
    "compare": {
        "method": "what is compared: --methods",
        "pattern": "what is compared: --patterns",
        "seed": "what is compared: --seeds",
        "stages": STAGES,
    },
    "bench": {},
    "cliff": {},
}
"""Command -> field that none of its options gives -> the reason."""
OF_ANOTHER_NAME = {"parameters": SET, "regional": SET}
"""Field -> the option that gives it."""


def parameters_of(command: str) -> dict[str, Any]:
    """Option or argument of a command, by name."""
    commands: Any = typer.main.get_command(app)
    return {parameter.name: parameter for parameter in commands.commands[command].params}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_is_an_option_or_has_a_reason(command: str) -> None:
    fields = {name for settings in COMMANDS[command] for name in settings.model_fields}
    given = parameters_of(command)
    absent = {name for name in fields if OF_ANOTHER_NAME.get(name, name) not in given}
    assert absent == set(NO_OPTION[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_text_and_default_are_those_of_the_field(command: str) -> None:
    given = parameters_of(command)
    compared = 0
    for name, parameter in given.items():
        settings = next((s for s in COMMANDS[command] if name in s.model_fields), None)
        if settings is None:
            continue
        field = settings.model_fields[name]
        text = " ".join((field.description or "").split())
        assert parameter.help.replace("\\[", "[").startswith(text)
        if name != "model":
            assert parameter.opts == [option_name(name)]
            assert parameter.secondary_opts == []
        if not field.is_required() and field.default not in ({}, [], None):
            shown = field.default
            shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
            assert parameter.default == shown
        compared += 1
    assert compared > 5


def test_recover_takes_what_it_lacked() -> None:
    assert {"weight_decay", "gradient_norm"} <= parameters_of("recover").keys()


class Toy(BaseModel):
    """One field of every kind."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: Annotated[str, Setting(Mark.CONTENT)]
    """The toy."""
    rounds: Annotated[int | None, Setting(Mark.RESULT, unset="as many as it takes")] = Field(
        default=None, ge=1
    )
    """Turn it this often [x]."""
    colour: Annotated[Literal["red", "blue"], Setting(Mark.RESULT)] = "red"
    """Paint it."""
    sizes: Annotated[tuple[int, ...], Setting(Mark.RESULT, metavar="N,...")] = (1, 2)
    """Make these."""
    texts: Annotated[list[str], Setting(Mark.RESULT)] = []
    """Print these on it."""
    by_name: Annotated[dict[str, str], Setting(Mark.RESULT, metavar="REGEX=COLOUR")] = {}
    """Paint its parts."""
    parameters: Annotated[dict[str, Any], Setting(Mark.RESULT)] = {}
    """Set a parameter."""
    regional: Annotated[dict[str, Any], Setting(Mark.RESULT)] = {}
    """Change a setting."""
    loud: Annotated[bool, Setting(Mark.RUN)] = False
    """Make noise."""


def run(*words: str, complete: bool = True) -> dict[str, Any]:
    """What a command made of the toy's fields is given for these words."""
    told: list[Given] = []
    app = typer.Typer()

    @app.command()
    @options_of(Toy, complete=complete)
    def play(given: Given, twice: Annotated[bool, typer.Option("--twice")] = False) -> None:
        """Play."""
        told.append({**given, "twice": twice})

    app(list(words), standalone_mode=False)
    (given,) = told
    return dict(given)


def test_what_was_not_given_is_not_there() -> None:
    assert run("m") == {"model": "m", "twice": False}
    assert run(complete=False) == {"twice": False}


def test_a_default_that_was_given_is_there() -> None:
    assert run("m", "--colour", "red", "--sizes", "1,2")["colour"] == "red"


def test_words_are_read_as_the_field_says() -> None:
    words = (
        "m", "--rounds", "3", "--sizes", "4,8", "--texts", "a", "--texts", "b", "--loud", "--twice",
        "--by-name", "a=b=red", "--set", "alpha=1e2", "--set", "variant=true",
        "--set", "regional.rounds=3", "--set", "word=l1=",
    )  # fmt: skip
    assert run(*words) == {
        "model": "m", "rounds": "3", "sizes": "4,8", "texts": ["a", "b"],
        "loud": True, "twice": True,
        "by_name": {"a=b": "red"}, "parameters": {"alpha": 100.0, "variant": True, "word": "l1="},
        "regional": {"rounds": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "alpha"], "--set 'alpha'; wanted NAME=VALUE"),
        (["--set", "=3"], "wanted NAME=VALUE"),
        (["--set", "a.b=3"], "--set 'a.b'; wanted NAME or regional.NAME"),
        (["--set", "parameters.a=3"], "wanted NAME or regional.NAME"),
        (["--by-name", "red"], "--by-name 'red'; wanted REGEX=COLOUR"),
        (["--by-name", "=red"], "wanted REGEX=COLOUR"),
    ],
)
def test_a_pair_that_cannot_be_read_costs_one_line(words: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        run("m", *words)


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(typer.TyperException, match="Missing parameter: model"):
        run()


def command(given: Given) -> None:
    """Whatever is given, it does nothing."""


def test_the_signature_shows_defaults_and_the_help_names_choices() -> None:
    made = inspect.signature(options_of(Toy)(command)).parameters
    assert made["model"].default is inspect.Parameter.empty
    assert (made["sizes"].default, made["colour"].default) == ("1,2", "red")
    helps = {name: facts.annotation.__metadata__[0] for name, facts in made.items() if name in
             Toy.model_fields}  # fmt: skip
    assert helps["colour"].help == "Paint it. One of red, blue."
    assert helps["rounds"].help == r"Turn it this often \[x]."
    assert helps["rounds"].show_default == "as many as it takes"
    assert helps["texts"].metavar == "<str>"


def test_of_two_fields_with_one_name_the_first_counts() -> None:
    decorate = options_of(EvaluationSettings, Fields(Recipe, ("text", "samples")))
    made = inspect.signature(decorate(command)).parameters
    assert list(made)[-1] == "samples"
    assert "held-out text" in made["text"].annotation.__metadata__[0].help
    assert "while the blocks pass" not in made["text"].annotation.__metadata__[0].help


def test_a_field_that_can_be_no_option_is_a_fault_of_the_program() -> None:
    class Odd(BaseModel):
        parts: Annotated[list[Toy], Setting(Mark.RESULT)] = []

        more: Annotated[tuple[Toy, ...], Setting(Mark.RESULT)] = ()

    with pytest.raises(TypeError, match=r"no option can be made of Odd\.parts"):
        options_of(Odd)
    with pytest.raises(TypeError, match=r"no option can be made of Odd\.more"):
        options_of(Odd, without=("parts",))
    options_of(Odd, without=("parts", "more"))


def test_options_go_over_a_recipe_file_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: m\nmethod: wanda++\ncalibration: t.txt\nsamples: 4\ninclude: [mlp]\n"
        "patterns: {q_proj: 50%, k_proj: 1:4}\nparameters: {alpha: 5}\n",
        encoding="utf-8",
    )
    options = {
        "samples": 6, "include": ["attn"], "patterns": {"v_proj": "1:4", "q_proj": "2:4"},
        "parameters": {"competition": "layer"}, "regional": {"rounds": 2},
    }  # fmt: skip
    recipe = read_recipe(path, options)
    assert (recipe.model, recipe.samples, recipe.include) == ("m", 6, ["attn"])
    assert list(recipe.patterns.items()) == [("v_proj", "1:4"), ("q_proj", "2:4"),
                                             ("k_proj", "1:4")]  # fmt: skip
    assert recipe.parameters == {"competition": "layer", "alpha": 5}
    assert recipe.regional == {"rounds": 2}
    assert read_recipe(path, {}).samples == 4
