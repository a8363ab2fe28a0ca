"""What tells the rows of a comparison apart: the settings that decided a run, and a short label.

Settings count as their marks say. Of mark CONTENT, the model and the held-out texts have grouped
the runs already; the calibration counts by its name, and two names of the same tokens are one; the
precision is the one that was computed in; where BOS stands counts where the tokenizer adds one and
the runs differ in it. The seed is no setting of a row, which holds all seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from secateur.data import Protocol
from secateur.errors import SecateurError
from secateur.recipe import Recipe
from secateur.recipe.differences import deciding
from secateur.recipe.setting import setting_of
from secateur.record import RecoveryRecord, RunRecord
from secateur.sparsity import SELECTION_KEYS

_IN_THE_ROW = ("method", "pattern", "seed")
"""Settings that stand in the row itself, or that its runs differ in."""
_RECOVERY = "recovery."
"""How the names of settings of a recovery begin."""
_SCHEME = "quantize"
"""The setting that says how weights are rounded."""
_BOS = frozenset({"bos", f"{_RECOVERY}bos"})
"""Settings that say where BOS stands, in the text of the calibration and of the recovery."""

_OFF: tuple[Any, ...] = (None, False, 0, [], {})
"""Values of settings of which a label says nothing; those of parameters it always says."""


def deciding_settings(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What decided the result of every run, the seed and what its row names left out.

    Args:
        records: of one comparison.
    """
    names = _names_of_sources(records)
    settings = [_settings_of(record, names) for record in records]
    if _begin_alike(records):
        settings = [{**facts, **dict.fromkeys(_BOS & facts.keys())} for facts in settings]
    return [
        {**facts, **_tokens_if_told_apart(record, facts, records, settings)}
        for record, facts in zip(records, settings, strict=True)
    ]


def labels(records: Sequence[RunRecord], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells every run from the others of its method, in as few words as possible.

    What chooses the matrices to prune is told wherever any two runs differ in it, of whichever
    methods they are: their numbers do not compare. That weights are rounded is told in any case.

    Args:
        records: of one comparison.
        settings: what `deciding_settings` says of them.
    """
    alike: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for record, facts in zip(records, settings, strict=True):
        alike.setdefault((record.method, record.recovery is not None), []).append(facts)
    choosing = [*_choosing(settings), _SCHEME]
    telling = {method: _telling(group, choosing) for method, group in alike.items()}
    return [
        ", ".join(_phrases(record, facts, telling[record.method, record.recovery is not None]))
        for record, facts in zip(records, settings, strict=True)
    ]


def shared_with_baseline(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run must have in common with the one that it is measured against.

    Those of the method itself may differ, and so may what was trained afterwards.
    """
    return {
        name: value
        for name, value in settings.items()
        if not name.startswith(_RECOVERY) and not _is_of_method(name)
    }


def _is_of_method(name: str) -> bool:
    field = name.partition(".")[0]
    return field in Recipe.model_fields and setting_of(Recipe, field).part is not None


def _settings_of(record: RunRecord, names: Mapping[str, str]) -> dict[str, Any]:
    recipe = record.pruning_recipe
    calibration = record.calibration
    sources = {"calibration": _text_of(recipe, "calibration"), "images": recipe.get("images")}
    content: dict[str, Any] = {
        name: names.get(str(source), source) for name, source in sources.items()
    }
    bos = calibration.bos if isinstance(calibration, Protocol) else recipe.get("bos")
    facts = deciding(Recipe, recipe, {**content, "dtype": record.dtype, "bos": bos})
    if _written_by_default(recipe):
        facts["written"] = None
    for name in [name for name in facts if name.split()[-1] in _IN_THE_ROW]:
        del facts[name]
    if record.recovery is not None:
        facts.update(_settings_of_recovery(record, record.recovery, names))
    return facts


def _settings_of_recovery(
    record: RunRecord, recovery: RecoveryRecord, names: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """What decided a recovery; the model that it began with is what the rest of the record says."""
    from secateur.recovery.settings import Recovery  # its room loads peft, which takes seconds

    told = recovery.settings
    content = {
        "text": names.get(str(_text_of(told, "text"))),
        "dense": told.get("dense") or record.settings.get("model"),
        "bos": recovery.text.bos,
    }
    for name, value in deciding(Recovery, told, content).items():
        if name != "seed" or value != record.settings.get("seed"):
            yield _RECOVERY + name, value


def _begin_alike(records: Sequence[RunRecord]) -> bool:
    """Whether all texts begin alike: in one way, or by a tokenizer that puts nothing before any."""
    texts = [
        text
        for record in records
        for text in (record.calibration, record.recovery and record.recovery.text)
        if isinstance(text, Protocol)
    ]
    nothing = any(text.prefix == () for text in texts)
    return nothing or len({text.bos for text in texts if text.bos is not None}) < 2


def _written_by_default(recipe: Mapping[str, Any]) -> bool:
    """Whether the dense model wrote as many sequences as the other settings imply."""
    try:
        implied = Recipe.model_validate({**recipe, "written": None}).chosen_written
    except (SecateurError, ValidationError):
        return False
    return implied == recipe.get("written")


def _names_of_sources(records: Sequence[RunRecord]) -> dict[str, str]:
    """Source of tokens or images -> the name that stands for it: one for all that gave the same."""
    first: dict[str, str] = {}
    names: dict[str, str] = {}
    for record in records:
        digests = list(_tokens_of(record).values())
        sources = [_source_of_calibration(record)] * (record.calibration is not None)
        if record.recovery is not None:
            sources.append(_text_of(record.recovery.settings, "text"))
        for source, digest in zip(sources, digests, strict=True):
            name = names.get(str(source), str(source))
            names.setdefault(str(source), first.setdefault(digest, name))
    return names


def _source_of_calibration(record: RunRecord) -> Any:
    return _text_of(record.settings, "calibration") or record.settings.get("images")


def _text_of(settings: Mapping[str, Any], option: str) -> Any:
    """The text that an option names; of a mixture all of its texts and their shares, as one."""
    texts, shares = settings.get(option), settings.get("shares")
    if not isinstance(texts, list):
        return texts
    ratio = ":".join(f"{share:g}" for share in shares or ())
    return " + ".join(texts) + (f" ({ratio})" if ratio else "")


def _tokens_of(record: RunRecord) -> dict[str, str]:
    """The hashes of what a run was calibrated on, and of what its model was trained on."""
    digests = {}
    if record.calibration is not None:
        digests["calibration.tokens"] = record.calibration.sha256
    if record.recovery is not None:
        digests[f"{_RECOVERY}tokens"] = record.recovery.text.sha256
    return digests


def _tokens_if_told_apart(
    record: RunRecord,
    facts: Mapping[str, Any],
    records: Sequence[RunRecord],
    settings: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """The hashes of the tokens, as far as another run that is else the same had other ones."""
    tokens, told = _tokens_of(record), {}
    for other, theirs in zip(records, settings, strict=True):
        if _row_of(other) == _row_of(record) and theirs == facts:
            for name, digest in _tokens_of(other).items():
                if tokens.get(name, digest) != digest:
                    told[name] = tokens[name][:6]
    return told


def _row_of(record: RunRecord) -> tuple[str, str, Any]:
    return record.method, record.pattern, record.settings.get("seed")


def _choosing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of settings that choose matrices, of those in which any two runs differ."""
    names = dict.fromkeys(name for facts in settings for name in facts)
    return [
        name
        for name in names
        if name.split()[-1] in SELECTION_KEYS
        and len({key_of({name: facts.get(name) or None}) for facts in settings}) > 1
    ]


def _telling(settings: Sequence[Mapping[str, Any]], told: Sequence[str]) -> list[str]:
    """The names of settings that tell apart all that differ; none that tells nothing new.

    Args:
        settings: of runs of one method.
        told: names that are among them whatever they tell apart.
    """
    telling = list(told)
    classes = len({key_of(facts, telling) for facts in settings})
    for name in dict.fromkeys(name for facts in settings for name in facts):
        told_apart = len({key_of(facts, [*telling, name]) for facts in settings})
        if told_apart > classes:
            telling, classes = [*telling, name], told_apart
    return telling


def key_of(settings: Mapping[str, Any], names: Sequence[str] | None = None) -> str:
    """Settings, or those of these names, as text that is the same if and only if they are."""
    chosen = list(settings) if names is None else names
    return json.dumps([[name, settings.get(name)] for name in chosen], default=str)


def _phrases(record: RunRecord, settings: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """name=value of every setting; nothing of one that is off, empty or not there."""
    of_recovery = [name for name in names if name.startswith(_RECOVERY)]
    for name in names:
        value = settings.get(name)
        if name not in of_recovery and (value not in _OFF or "." in name):
            yield f"{name.removeprefix('parameters.')}={_brief(value)}"
    if record.recovery is not None:
        yield f"recovered, {record.recovery.settings.get('objective', 'lm')}"
        for name in of_recovery:
            if name != f"{_RECOVERY}objective":
                yield f"{name.removeprefix(_RECOVERY)}={_brief(settings.get(name))}"


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
