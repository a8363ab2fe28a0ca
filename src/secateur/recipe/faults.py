"""Everything that is wrong with the values of a recipe, found before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from secateur.errors import SecateurError
from secateur.methods import Refine, get
from secateur.recipe.regional import EFFORTS, Regional, ready_made
from secateur.recipe.setting import phrase_of
from secateur.sparsity import NofM, parse_pattern, read_selection
from secateur.statistics import Need


def faults_of(recipe: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the values, a phrase each."""
    faults = [
        phrase_of(error, recipe.model_fields)
        for error in _errors(lambda: recipe.model_validate(dict(values)))
    ]
    also = values.get("also_text") or []
    texts = [values.get("text"), *(also if isinstance(also, list) else [also])]
    if len(texts) > 1 and texts[0] is None:
        faults.append("also_text is measured beside text: give --text SOURCE")
    elif any(texts.count(text) > 1 for text in texts):
        faults.append("a held-out text is named twice")
    name, written = values.get("method", "wanda++"), values.get("pattern", "2:4")
    method = _try(lambda: get(name), faults) if isinstance(name, str) else None
    readable = isinstance(written, str | int | float) and not isinstance(written, bool)
    pattern = _try(lambda: parse_pattern(written), faults) if readable else None
    patterns = [] if pattern is None else [pattern]
    if pattern is not None and not _errors(lambda: recipe.model_validate(dict(values))):
        selection = _try(
            lambda: read_selection(recipe.model_validate(dict(values)).model_dump()), faults
        )
        patterns = patterns if selection is None else selection.every_pattern
    parameters = values.get("parameters") or {}
    preset, regional = values.get("preset", "auto"), values.get("regional") or {}
    params = None
    if method is not None and isinstance(parameters, dict):
        wrong = _errors(lambda: method.params.model_validate(parameters))
        faults += [phrase_of(error, method.params.model_fields, "parameters") for error in wrong]
        params = None if wrong else method.params.model_validate(parameters)
        sources = [key for key in ("calibration", "images") if values.get(key) is not None]
        if method.needs_calibration and not sources:
            faults.append(
                f"method {method.name} needs calibration text: give --calibration SOURCE"
                " (a classifier needs --images FOLDER)"
            )
        if len(sources) == 2:
            faults.append("text and images to calibrate with: leave calibration or images out")
        files = [key for key in ("gradients", "save_gradients") if values.get(key) is not None]
        if files and Need.FULL_GRADIENT not in method.needs:
            faults.append(
                f"method {method.name} uses no full-model gradients: leave {files[0]} out"
            )
        elif len(files) == 2:
            faults.append("gradients are read from a file: leave save_gradients out")
        dense = method.refine is Refine.REGIONAL or Need.REGIONAL_GRADIENT in method.needs
        if values.get("schedule") == "matrix" and dense:
            faults.append(
                f"method {method.name} needs what the dense block gives, which schedule matrix"
                " never computes: leave schedule out"
            )
        if regional and method.refine is not Refine.REGIONAL:
            faults.append(f"method {method.name} has no regional optimiser: leave regional.* out")
    shared_out = values.get("allocation", "uniform")
    if shared_out in ("owl", "measured"):
        if isinstance(pattern, NofM):
            faults.append(f"allocation {shared_out} shares out a ratio, such as 60%, not {pattern}")
        if values.get("calibration") is None:
            faults.append(f"allocation {shared_out} needs calibration text: --calibration SOURCE")
    if params is not None:
        faults += [no for own in patterns if (no := params.objection(own)) is not None]
    effort = values.get("effort", "balanced")
    known = preset in ("auto", "paper") and effort in tuple(EFFORTS)
    if known and preset == "paper" and "effort" in values and effort != "balanced":
        faults.append("preset paper sets its own rounds: leave effort out")
    if known and isinstance(regional, dict):
        wrong = _errors(lambda: ready_made(preset, effort, regional))
        faults += [phrase_of(error, Regional.model_fields, "regional") for error in wrong]
        held = wrong or ready_made(preset, effort, regional).hold_mask
        if method is not None and method.solve and method.refine is Refine.REGIONAL and not held:
            faults.append(
                f"method {method.name} has no score to choose another mask by:"
                " regional.hold_mask must be true, and preset auto"
            )
    return faults


def _try(make: Any, faults: list[str]) -> Any:
    try:
        return make()
    except SecateurError as fault:
        faults.append(str(fault))
        return None


def _errors(make: Any) -> list[Any]:
    try:
        make()
    except ValidationError as fault:
        return list(fault.errors())
    return []
