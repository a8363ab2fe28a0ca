"""Records of earlier versions, brought forward to the present one before they are read.

    secateur/run/1   one stage, its options among those of the run under `recipe`; its blocks and
                     notices beside them; the parameter `competition` was once called `compare`
    secateur/run/2   `settings` of the run, and a list of `stages`, each with its settings

An option that is newer than a record stands in it with what was the case before there was one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur import methods
from secateur.recipe.differences import with_defaults
from secateur.recipe.prune_stage import PruneStage, without_optimiser
from secateur.recipe.recipe import Recipe, run_settings
from secateur.recipe.stage import PRUNE

FORMAT = "secateur/run/2"
"""The format of the records that this version writes."""
_FIRST_FORMAT = "secateur/run/1"
_BEFORE: Mapping[str, Any] = {"written": 0, "bos": "stream"}
"""What was the case before an option was there, where that is not its default now."""
_RENAMED = {"compare": "competition"}
"""Parameters of methods: the name that they once had -> their name."""


def bring_forward(values: Any) -> Any:
    """The values of a record, of whatever version, as the present version has them.

    Raises:
        ValueError: they are of a later version.
    """
    if not isinstance(values, Mapping):
        return values
    version = values.get("format", FORMAT)
    if version == _FIRST_FORMAT:
        values = _from_first(values)
    elif version != FORMAT:
        raise ValueError(
            f"its format is {str(version)[:40]!r}, and this version of secateur reads none later"
            f" than {FORMAT!r}"
        )
    return _completed(values)


def _from_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the first version as one of the second."""
    moved = ("recipe", "blocks", "notices")
    recipe = values.get("recipe")
    if not isinstance(recipe, Mapping):
        raise ValueError("it has no recipe")
    inside = PruneStage.model_fields
    stage = {
        "kind": PRUNE,
        "settings": {key: value for key, value in recipe.items() if key in inside},
        "blocks": values.get("blocks", ()),
        "seconds": values.get("seconds", 0.0),
        "notices": values.get("notices", ()),
    }
    return {
        **{key: value for key, value in values.items() if key not in moved},
        "format": FORMAT,
        "settings": {key: value for key, value in recipe.items() if key not in inside},
        "stages": [stage],
    }


def _completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the options in it that are newer than it is."""
    settings, stages = values.get("settings"), values.get("stages")
    if not isinstance(settings, Mapping) or "seed" not in settings:
        return dict(values)  # nobody knows how this model was pruned
    told = with_defaults(Recipe, {**_BEFORE, **settings})
    names = [name for name in told if name in settings or name in run_settings()]
    completed = {**values, "settings": {name: told[name] for name in names}}
    recovery = values.get("recovery")
    if isinstance(recovery, Mapping) and isinstance(recovery.get("settings"), Mapping):
        trained = {"bos": _BEFORE["bos"], **recovery["settings"]}
        completed["recovery"] = {**recovery, "settings": trained}
    if isinstance(stages, list | tuple):
        completed["stages"] = [_completed_stage(stage) for stage in stages]
    return completed


def _completed_stage(stage: Any) -> Any:
    """The same for a stage of a record, if it pruned and its settings can be read."""
    if not isinstance(stage, Mapping) or stage.get("kind") != PRUNE:
        return stage
    settings = stage.get("settings")
    if not isinstance(settings, Mapping) or not {"method", "pattern"} <= settings.keys():
        return stage
    parameters = settings.get("parameters") or {}
    if isinstance(parameters, Mapping):
        parameters = {_RENAMED.get(name, name): value for name, value in parameters.items()}
        known = {method.name: method for method in methods.every()}
        if (method := known.get(str(settings["method"]))) is not None:
            parameters = {**method.params().model_dump(mode="json"), **parameters}
    completed = with_defaults(PruneStage, {**settings, "parameters": parameters})
    if not completed["regional"]:
        completed |= without_optimiser()
    return {**stage, "settings": completed}
