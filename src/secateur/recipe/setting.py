"""What a setting means, written once, on its field.

    windows: Annotated[int | None, Setting(Mark.CONTENT, unset="all")] = Field(default=None, ge=1)
    '''The help text: of the option, of the recipe and of the Python function.'''

Whatever asks about a setting reads its mark here: options, the dry run, resuming, comparing asked
with told, the report and its recipes. There is no second list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel


class Mark(StrEnum):
    """What a change of a setting changes."""

    RESULT = "result"
    """Bits of the result: the value itself is compared."""
    CONTENT = "content"
    """Bits of the result, by what is named or cut: the hash of that is compared, not the name."""
    PLACE = "place"
    """Where something lies or is computed: a path, a device. No bit of the result."""
    RUN = "run"
    """How a run begins: anew, over what is there, with code that is trusted. No bit either."""


@dataclass(frozen=True)
class Setting:
    """Stands in the annotation of a field, beside its type.

    Attributes:
        mark: what a change of it changes.
        unset: what None stands for, as the help shows it in place of a default.
        metavar: what the help calls the value, where its type says too little.
    """

    mark: Mark
    unset: str | None = None
    metavar: str | None = None


def setting_of(settings: type[BaseModel], name: str) -> Setting:
    """What is written on a field.

    Raises:
        TypeError: nothing is, which is a fault of the program.
    """
    for fact in settings.model_fields[name].metadata:
        if isinstance(fact, Setting):
            return fact
    raise TypeError(f"{settings.__name__}.{name} has no Setting")


def names_of(settings: type[BaseModel], *marks: Mark) -> tuple[str, ...]:
    """The fields with one of these marks, in the order in which they are written."""
    return tuple(name for name in settings.model_fields if setting_of(settings, name).mark in marks)
