"""Asked and told: which settings decide a run, and in what two runs differ.

    what decides   RESULT   the value itself
                   CONTENT  the content, where it is known; else the name, or the cut
                   PLACE, RUN: nothing

Resuming, the comparison, recovery and the report all ask here, and the marks on the fields answer.
The members of a group (`parameters`, `regional`) count one by one, as do those of every stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from secateur.recipe.setting import Mark, names_of, setting_of
from secateur.recipe.stage import KIND, PRUNE, STAGES, kind_named

LONGEST_VALUE = 40
"""Characters of a value that a message repeats; hashes and lists are cut to a few of them."""
SHORTENED = 12
"""Characters that are left of a value that is cut."""


@dataclass(frozen=True)
class Difference:
    """One setting in which two runs differ.

    Attributes:
        name: of the setting, such as "samples", "parameters.alpha" or "stage 2 pattern".
        asked: its value in the run that is asked for now; None if it has none.
        told: its value in the run that is there.
    """

    name: str
    asked: Any
    told: Any

    @property
    def told_text(self) -> str:
        """The value that is there, short enough for a message."""
        return _brief(self.told)

    @property
    def asked_text(self) -> str:
        """The value that is asked for, short enough for a message."""
        return _brief(self.asked)

    def __str__(self) -> str:
        return f"{self.name} {self.told_text}, not {self.asked_text}"


def deciding(
    settings: type[BaseModel],
    values: Mapping[str, Any],
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What decides the bits of a run, by names that a person knows, in the order of the fields.

    Args:
        settings: the class of the settings, whose marks are read.
        values: spelled out.
        content: what settings of mark CONTENT name: name -> hash, or what stands for it. They take
            the place of all such settings. None where the content is not known: then the settings
            count by the names and numbers in `values`.
    """
    facts: dict[str, Any] = {}
    marks = (Mark.RESULT,) if content is not None else (Mark.RESULT, Mark.CONTENT)
    for name in names_of(settings, *marks):
        if name == STAGES:
            facts.update(_of_stages(values.get(STAGES) or ()))
        elif setting_of(settings, name).group:
            members = values.get(name) or {}
            facts.update({f"{name}.{member}": value for member, value in members.items()})
        elif name in values:
            facts[name] = values[name]
    return {**facts, **(content or {})}


def differences(asked: Mapping[str, Any], told: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The facts in which two runs differ, in the order of the run that is asked for.

    Args:
        asked, told: what decides each of them; a name that one of them lacks stands for None.
    """
    return tuple(
        Difference(name, asked.get(name), told.get(name))
        for name in {**asked, **told}
        if _plain(asked.get(name)) != _plain(told.get(name))
    )


def with_defaults(settings: type[BaseModel], told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a run, with the defaults of options that are newer than what told it."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in settings.model_fields.items()
        if not field.is_required()
    }
    return {**defaults, **told}


def _of_stages(stages: Any) -> Iterator[tuple[str, Any]]:
    """The settings of every stage of a list, one by one."""
    for number, stage in enumerate(stages, 1):
        kind = stage.get(KIND, PRUNE)
        yield f"stage {number} {KIND}", kind
        for name, value in deciding(kind_named(kind), stage).items():
            yield f"stage {number} {name}", value


def _plain(value: Any) -> Any:
    """A value as it comes back from a file; of a mapping the order counts, as it may decide."""
    if isinstance(value, Mapping):
        return [[key, _plain(inner)] for key, inner in value.items()]
    return json.loads(json.dumps(value, default=str))


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:SHORTENED]}..."
