"""Everything that is wrong with the values of a recipe, found before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from secateur.errors import SecateurError
from secateur.methods import Method, Params, Refine, get
from secateur.recipe.faults_of_quantization import faults_of_sequence
from secateur.recipe.faults_of_structures import faults_of_structures
from secateur.recipe.regional import EFFORTS, Regional, ready_made
from secateur.recipe.setting import faults_of_locations
from secateur.recipe.stage import KIND, PRUNE, STAGES, Stage, kind_named
from secateur.recipe.wording import as_given, briefly, name_of, phrase_of
from secateur.sparsity import NofM, Pattern, parse_pattern, read_selection
from secateur.statistics import Need

T = TypeVar("T")


def faults_of(recipe: type[Stage], values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the values of a recipe, a phrase each.

    Args:
        recipe: the class of recipes, which is also the stage of a flat one.
        values: unchecked; a key that is not there has its default.
    """
    flat = {key: value for key, value in values.items() if key != STAGES}
    faults = phrases(lambda: recipe.model_validate(flat), recipe)
    faults += faults_of_locations(recipe, flat)
    faults += _faults_of_texts(values)
    if STAGES in values:
        faults += _faults_of_stages(recipe, values[STAGES], flat)
    else:
        faults += recipe.faults(flat, flat)
    return faults


def _faults_of_texts(run: Mapping[str, Any]) -> Iterator[str]:
    also = run.get("also_text") or []
    texts = [run.get("text"), *(also if isinstance(also, list) else [also])]
    if len(texts) > 1 and texts[0] is None:
        yield f"{name_of('also_text')} is measured beside {name_of('text')}: give both"
    elif any(texts.count(text) > 1 for text in texts):
        yield "a held-out text is named twice"
    if run.get("windows") is not None and run.get("text") is None:
        yield f"{as_given(('windows',), run['windows'])} are those of {name_of('text')}: give both"


def faults_of_parts(
    sources: Sequence[str],
    shares: Sequence[float] | None,
    samples: int,
    option: str = "calibration",
) -> list[str]:
    """What does not fit together in a batch of several texts.

    Args:
        sources: the texts.
        shares: of the samples that each is to give; None: all give as many.
        samples: sequences in all.
        option: the field that names the texts.
    """
    faults = []
    if twice := [source for source in dict.fromkeys(sources) if sources.count(source) > 1]:
        faults.append(f"{as_given((option,), twice[0])} stands twice, wanted every text once")
    if len(sources) > samples:
        faults.append(
            f"{as_given(('samples',), samples)} of {len(sources)} texts,"
            " wanted one of each at least"
        )
    if shares is not None and len(shares) != len(sources):
        faults.append(
            f"{as_given(('shares',), ','.join(f'{share:g}' for share in shares))},"
            f" wanted one for each of several {name_of(option)}"
            f" (there {'is' if len(sources) == 1 else 'are'} {len(sources)})"
        )
    elif shares is not None and len(sources) == 1:
        faults.append(f"{name_of('shares')} are those of several {name_of(option)}: leave them out")
    return faults


def _faults_of_stages(recipe: type[Stage], stages: Any, run: Mapping[str, Any]) -> list[str]:
    """What is wrong with a list of stages, and in each of them."""
    if not isinstance(stages, list | tuple) or not stages:
        return [f"stages={briefly(stages)}, wanted a list of stages, each with its method"]
    faults = []
    inside = kind_named(PRUNE).model_fields
    if beside := [key for key in run if key in inside]:
        faults.append(f"{', '.join(beside)} beside stages: put each into the stage that it is for")
    if len(stages) > 1 and (files := _given(run, "gradients", "save_gradients")):
        faults.append(
            f"a file of gradients is of one model, and stages change it: no {name_of(files[0])}"
        )
    for number, values in enumerate(stages, 1):
        if _finishes(values) and (number == 1 or number < len(stages)):
            kind = values.kind if isinstance(values, Stage) else values[KIND]
            faults.append(f"stage {number}: {kind} goes last, after a stage that prunes")
        faults += [f"stage {number}: {fault}" for fault in _faults_of_stage(values, run)]
    faults += faults_of_sequence([_settings_of(values) for values in stages])
    return faults


def _finishes(values: Any) -> bool:
    """Whether a stage must be the last; of what is none, that is told elsewhere."""
    if isinstance(values, Mapping):
        try:
            return kind_named(values.get(KIND, PRUNE)).finishes
        except SecateurError:
            return False
    return isinstance(values, Stage) and values.finishes


def _settings_of(values: Any) -> Mapping[str, Any]:
    """The settings of a stage as they were given; none of what is no stage."""
    if isinstance(values, Stage):
        return {KIND: values.kind, **values.stage_options()}
    return values if isinstance(values, Mapping) else {}


def _faults_of_stage(values: Any, run: Mapping[str, Any]) -> list[str]:
    if not isinstance(values, Stage | Mapping):
        return [f"{briefly(values)}, wanted settings, such as method: wanda"]
    settings = {str(key): value for key, value in _settings_of(values).items()}
    name = settings.pop(KIND, PRUNE)
    try:
        kind = kind_named(name)
    except SecateurError as fault:
        return [str(fault)]
    return [*phrases(lambda: kind.model_validate(settings), kind), *kind.faults(settings, run)]


def faults_of_pruning(
    stage: type[Stage], values: Mapping[str, Any], run: Mapping[str, Any]
) -> list[str]:
    """What does not fit together in the settings of a stage that prunes.

    Args:
        stage: the class of the settings.
        values: of the stage, unchecked.
        run: settings of the run, unchecked.
    """
    faults: list[str] = []
    name = values.get("method", "wanda++")
    method = _try(lambda: get(name), faults) if isinstance(name, str) else None
    patterns = _patterns(stage, values, faults)
    params = None
    if method is not None:
        params = _parameters(method, values, faults)
        faults += _faults_of_sources(method, run)
        faults += _faults_of_gradient_files(method, run)
        faults += faults_of_structures(method, patterns, values, run)
        method = replace(method, refine=Refine.REGIONAL) if values.get("mend") else method
        faults += _faults_of_schedule(method, values)
    faults += _faults_of_allocation(patterns, values, run)
    if params is not None:
        faults += [no for pattern in patterns if (no := params.objection(pattern)) is not None]
    return [*faults, *_faults_of_regional(method, values)]


def _patterns(
    stage: type[Stage], values: Mapping[str, Any], faults: list[str]
) -> tuple[Pattern, ...]:
    """Every pattern that a matrix may get, as far as they can be read; the stage's own first."""
    written = values.get("pattern", "2:4")
    if not isinstance(written, str | int | float) or isinstance(written, bool):
        return ()
    pattern = _try(lambda: parse_pattern(written), faults)
    if pattern is None:
        return ()
    if phrases(lambda: stage.model_validate(dict(values)), stage):
        return (pattern,)
    whole = stage.model_validate(dict(values)).model_dump()
    selection = _try(lambda: read_selection(whole), faults)
    return (pattern,) if selection is None else selection.every_pattern


def _parameters(method: Method, values: Mapping[str, Any], faults: list[str]) -> Params | None:
    """The parameters of the method; None if something is wrong with them."""
    parameters = values.get("parameters") or {}
    if not isinstance(parameters, dict):
        return None
    wrong = phrases(lambda: method.params.model_validate(parameters), method.params, "parameters")
    faults += wrong
    return None if wrong else method.params.model_validate(parameters)


def _faults_of_sources(method: Method, run: Mapping[str, Any]) -> Iterator[str]:
    sources = _given(run, "calibration", "images")
    if method.needs_calibration and not sources:
        yield (
            f"method {method.name} needs calibration text: give {name_of('calibration')}"
            f" (a classifier needs {name_of('images')})"
        )
    texts = run.get("calibration")
    texts = texts if isinstance(texts, list | tuple) else [texts]
    if run.get("column") is not None and all(text in (None, "self") for text in texts):
        yield "column names one of the calibration's files: leave it out, or give such a file"
    if len(sources) == 2:
        yield (
            "text and images to calibrate with: leave"
            f" {name_of('calibration')} or {name_of('images')} out"
        )


def _faults_of_gradient_files(method: Method, run: Mapping[str, Any]) -> Iterator[str]:
    files = _given(run, "gradients", "save_gradients")
    if files and Need.FULL_GRADIENT not in method.needs:
        yield f"method {method.name} uses no full-model gradients: leave {name_of(files[0])} out"
    elif len(files) == 2:
        yield f"gradients are read from a file: leave {name_of('save_gradients')} out"


def _faults_of_schedule(method: Method, values: Mapping[str, Any]) -> Iterator[str]:
    dense = method.refine is Refine.REGIONAL or Need.REGIONAL_GRADIENT in method.needs
    if values.get("schedule") == "matrix" and dense:
        yield (
            f"method {method.name} needs what the dense block gives, which schedule matrix"
            f" never computes: leave {name_of('schedule')} out"
        )


def _faults_of_allocation(
    patterns: tuple[Pattern, ...], values: Mapping[str, Any], run: Mapping[str, Any]
) -> Iterator[str]:
    allocation = values.get("allocation", "uniform")
    if allocation not in ("owl", "measured"):
        return
    if patterns and isinstance(patterns[0], NofM):
        yield f"allocation {allocation} shares out a ratio, such as 60%, not {patterns[0]}"
    if run.get("calibration") is None:
        yield f"allocation {allocation} needs calibration text: give {name_of('calibration')}"


def _faults_of_regional(method: Method | None, values: Mapping[str, Any]) -> Iterator[str]:
    preset, effort = values.get("preset", "auto"), values.get("effort", "balanced")
    changes = values.get("regional") or {}
    if method is not None and method.refine is not Refine.REGIONAL:
        idle = ["regional.*"] * bool(changes)
        idle += [
            name_of(name)
            for name, default in (("preset", "auto"), ("effort", "balanced"))
            if values.get(name, default) != default
        ]
        if idle:
            leave = f"leave {', '.join(idle)} out"
            mends = method.removal or values.get("quantize")
            leave += f", or give {name_of('mend')}" if mends else ""
            yield f"method {method.name} has no regional optimiser: {leave}"
    if preset not in ("auto", "paper") or effort not in tuple(EFFORTS):
        return
    if preset == "paper" and "effort" in values and effort != "balanced":
        yield f"preset paper sets its own rounds: leave {name_of('effort')} out"
    if not isinstance(changes, dict):
        return
    wrong = phrases(lambda: ready_made(preset, effort, changes), Regional, "regional")
    yield from wrong
    if values.get("mend") and not wrong and ready_made(preset, effort, changes).target != "model":
        yield f"{name_of('mend')} aims at the dense model: regional.target must be model"
    held = wrong or ready_made(preset, effort, changes).hold_mask
    if method is not None and method.solve and method.refine is Refine.REGIONAL and not held:
        yield (
            f"method {method.name} has no score to choose another mask by:"
            " regional.hold_mask must be true, and preset auto"
        )


def _given(values: Mapping[str, Any], *names: str) -> list[str]:
    """Those of the names under which there is a value."""
    return [name for name in names if values.get(name) is not None]


def _try(make: Callable[[], T], faults: list[str]) -> T | None:
    """What `make` gives; None if it complains, and its complaint is added to the faults."""
    try:
        return make()
    except SecateurError as fault:
        faults.append(str(fault))
        return None


def phrases(
    make: Callable[[], object], settings: type[BaseModel], group: str | None = None
) -> list[str]:
    """What pydantic complains of while `make` runs, a phrase each.

    Args:
        make: validates values.
        settings: the class that they are validated by, which knows the keys.
        group: the key of the recipe that these settings stand under.
    """
    try:
        make()
    except ValidationError as fault:
        return [phrase_of(error, settings.model_fields, group) for error in fault.errors()]
    return []
