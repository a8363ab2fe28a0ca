"""What a comparison has beyond a recipe, and which keys of the recipe it takes as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from secateur import methods
from secateur.errors import RecipeError
from secateur.machine.limits import MOST_REPEATS
from secateur.quantization import parse_scheme
from secateur.recipe import Recipe
from secateur.recipe.faults_of_quantization import IDLE_METHOD
from secateur.recipe.prune_stage import without_optimiser
from secateur.recipe.setting import (
    CONTENT,
    PLACE,
    RESULT,
    RUN,
    Names,
    Numbers,
    Setting,
    Settings,
)
from secateur.recipe.wording import as_given, name_of
from secateur.sparsity import NOTHING_PRUNED, Structures, parse_pattern
from secateur.statistics import Need

UNQUANTISED = "none"
"""The scheme of what is not quantised."""
OPTIMISER_KEYS = tuple(without_optimiser())
"""Keys of a recipe that only the regional optimiser reads."""


class ComparisonSettings(Settings):
    """What is compared, and what is done with it, beside the recipe that all runs share."""

    command = "compare"

    out: Annotated[str, Setting(PLACE, location=True)]
    """Write the records, the table and the report to this folder."""
    methods: Annotated[Names | None, Setting(RESULT, unset="all", metavar="NAME,...")] = None
    """Compare these methods, with commas between; `secateur methods` lists them."""
    patterns: Annotated[Names, Setting(RESULT, metavar="PATTERN,...")] = ("2:4",)
    """Compare these patterns, with commas between, such as 50%,2:4,4:8. N:M, such as 2:4: N of
    every M weights along the input are KEPT."""
    seeds: Annotated[Numbers, Setting(RESULT, metavar="N,...")] = (0,)
    """Repeat with these seeds, with commas between; each draws calibration sequences of its own."""
    quantize: Annotated[Names, Setting(RESULT, metavar="SCHEME,...")] = (UNQUANTISED,)
    """Compare the weights as they are pruned (none) and rounded to schemes, with commas between,
    such as none,w8a16,w4a16:g64."""
    matrix_patterns: Annotated[dict[str, str], Setting(RESULT, metavar="REGEX=PATTERN")] = Field(
        default={}
    )
    """Give the matrices whose name matches REGEX a pattern of their own in every run; the first
    match decides. May be repeated."""
    keep_models: Annotated[bool, Setting(RUN)] = False
    """Write the pruned models too, beside their records; classifiers of images always are."""
    recover: Annotated[int | None, Setting(RESULT, unset="no training", metavar="STEPS")] = Field(
        default=None, ge=1, le=MOST_REPEATS
    )
    """Train every pruned model back for this many steps on the calibration text, as `secateur
    recover` does; the models are written."""
    objective: Annotated[Literal["lm", "distill"], Setting(RESULT)] = "lm"
    """What recovery learns. lm: the text itself; distill: what the dense model says of it."""
    tasks: Annotated[str | None, Setting(RESULT)] = None
    """Ask the dense and every pruned or recovered model these zero-shot tasks, as `secateur
    evaluate` does; the models are written. continuation is made from text."""
    include_path: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Read task files from this folder too, beside lm-eval's own; the code in them is run."""
    limit: Annotated[int | None, Setting(RESULT, unset="all")] = Field(
        default=None, ge=1, le=MOST_REPEATS
    )
    """Ask at most this many questions of each task."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Do finished runs again, and replace other files that have the names of the tables."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        if any(seed >= 2**32 for seed in self.seeds):
            asked = as_given(("seeds",), ",".join(map(str, self.seeds)))
            return [f"{asked}, wanted numbers less than {2**32}"]
        if self.tasks is None and (self.include_path is not None or self.limit is not None):
            names = f"{name_of('include_path')} and {name_of('limit')}"
            return [f"{names} are of {name_of('tasks')}; wanted it too"]
        return []

    @property
    def chosen_methods(self) -> tuple[str, ...]:
        """The methods, the default filled in."""
        if self.methods is not None:
            return self.methods
        some: list[tuple[methods.Method, ...]] = []
        for pattern in map(parse_pattern, self.patterns):
            if isinstance(pattern, Structures):
                some.append(methods.every_remover(pattern.unit))
            else:
                some.append(methods.every())
        return tuple(dict.fromkeys(method.name for of_kind in some for method in of_kind))

    @property
    def chosen_schemes(self) -> tuple[str | None, ...]:
        """What the weights are rounded to, each once and in one spelling; None is not at all.

        Raises:
            RecipeError: there is no such scheme.
        """
        spelled = (
            None if one.lower() == UNQUANTISED else str(parse_scheme(one)) for one in self.quantize
        )
        return tuple(dict.fromkeys(spelled))

    @property
    def writes_models(self) -> bool:
        """Whether the pruned models are needed after they were measured."""
        return self.keep_models or self.recover is not None or self.tasks is not None


def is_of_structures(pattern: str) -> bool:
    """Whether a pattern removes structures.

    Raises:
        PatternError: it cannot be read.
    """
    return isinstance(parse_pattern(pattern), Structures)


def shared_keys() -> tuple[str, ...]:
    """The keys of a recipe that `compare` takes as they are: all that it does not set itself."""
    by_comparison = {"method", "pattern", "seed", "stages", *ComparisonSettings.model_fields}
    return tuple(name for name in Recipe.model_fields if name not in by_comparison)


def split_options(values: Mapping[str, Any]) -> tuple[ComparisonSettings, dict[str, Any]]:
    """The settings of a comparison, and what all of its recipes share, out of one mapping.

    Raises:
        RecipeError: a key is neither, or a setting of the comparison is wrong.
    """
    shared = {name: values[name] for name in shared_keys() if name in values}
    settings = ComparisonSettings.build(
        {name: value for name, value in values.items() if name not in shared}
    )
    if settings.matrix_patterns:
        shared["patterns"] = settings.matrix_patterns
    return settings, shared


def options_for(
    method: str, shared: Mapping[str, Any], *, structures: bool = False
) -> dict[str, Any]:
    """What of the shared keys concerns a method: parameters, regional settings and gradients
    go to the methods that have them, and mending to the patterns of structures and to what is
    quantised by a method that does not refine.

    Args:
        method: its name.
        shared: what all runs share, and the scheme.
        structures: whether the pattern removes structures.

    Raises:
        RecipeError: there is no such method.
    """
    chosen = methods.get(method)
    concerning = dict(shared)
    parameters = shared.get("parameters")
    if isinstance(parameters, Mapping):
        names = chosen.params.model_fields
        concerning["parameters"] = {
            name: value for name, value in parameters.items() if name in names
        }
    refines = chosen.refine is methods.Refine.REGIONAL
    if not structures:
        concerning.pop("width_multiple", None)
    if not structures and (refines or shared.get("quantize") is None):
        concerning.pop("mend", None)
    if not concerning.get("mend") and not refines:
        for name in OPTIMISER_KEYS:
            concerning.pop(name, None)
    if Need.FULL_GRADIENT not in chosen.needs:
        concerning.pop("gradients", None)
        concerning.pop("save_gradients", None)
    return concerning


def refuse_unused(settings: ComparisonSettings, shared: Mapping[str, Any]) -> None:
    """Refuse what concerns none of the methods that are compared.

    Raises:
        RecipeError: such a key, by name; or there is no such method, or scheme.
    """
    names = settings.chosen_methods
    alone = [IDLE_METHOD] if NOTHING_PRUNED in settings.patterns else []
    used = [
        options_for(name, {**shared, "quantize": scheme}, structures=some)
        for name in (*names, *alone)
        for scheme in settings.chosen_schemes
        for some in {is_of_structures(pattern) for pattern in settings.patterns}
    ]
    mended = ("mend",) if any(settings.chosen_schemes) else ()  # else `plan_runs` refuses it
    for key in (*mended, *OPTIMISER_KEYS, "gradients", "save_gradients"):
        default = Recipe.model_fields[key].get_default()
        if shared.get(key, default) != default and not any(key in options for options in used):
            raise RecipeError(f"{name_of(key)} concerns none of the methods {', '.join(names)}")
    for name in shared.get("parameters") or {}:
        if not any(name in options["parameters"] for options in used):
            raise RecipeError(f"none of the methods {', '.join(names)} has a parameter {name!r}")
