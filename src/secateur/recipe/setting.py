"""What a setting means, written once, on its field.

    windows: Annotated[int | None, Setting(Mark.CONTENT, unset="all")] = Field(default=None, ge=1)
    '''The help text: of the option, of the recipe and of the Python function.'''

Whatever asks about a setting reads its mark here: options, the dry run, resuming, comparing asked
with told, the report and its recipes. There is no second list.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike, fspath
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from secateur.errors import RecipeError, closest


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


CONTENT, PLACE, RESULT, RUN = Mark.CONTENT, Mark.PLACE, Mark.RESULT, Mark.RUN


class MethodPart(StrEnum):
    """Which part of a method a setting belongs to."""

    METHOD = "method"
    """Its score, or its solver."""
    OPTIMISER = "optimiser"
    """The regional optimiser; a method without one does not read the setting."""


@dataclass(frozen=True)
class Setting:
    """Stands in the annotation of a field, beside its type.

    Attributes:
        mark: what a change of it changes.
        unset: what None stands for, as the help shows it in place of a default.
        metavar: what the help calls the value, where its type says too little.
        group: whether the value is a mapping whose members are settings of their own.
        part: the part of a method that it belongs to; another method may have another one and still
            be compared with it.
    """

    mark: Mark
    unset: str | None = None
    metavar: str | None = None
    group: bool = False
    part: MethodPart | None = None


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


class Settings(BaseModel):
    """The settings of one command, frozen. Make it with `build`, which names all that is wrong.

    A field that is a tuple takes its members separated by commas, one that is a list takes them
    one by one; either takes a list of Python too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    command: ClassVar[str]
    """Name of the command, for the line that counts its faults."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        return []

    @model_validator(mode="after")
    def _without_contradiction(self) -> Self:
        if faults := self.contradictions():
            raise ValueError("\n".join(faults))
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Check everything and make the record.

        Raises:
            RecipeError: with all faults, in one line.
        """
        try:
            return cls.model_validate(without_paths(values))
        except ValidationError as fault:
            faults = [
                line
                for error in fault.errors()
                for line in phrase_of(error, cls.model_fields).splitlines()
            ]
            several = f"{len(faults)} faults in the options of {cls.command}: "
            head = several if len(faults) > 1 else ""
            raise RecipeError(head + " | ".join(faults)) from fault


def without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with every path as text, alone or in a list."""
    return {name: _without_path(value) for name, value in values.items()}


def _without_path(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_path(member) for member in value]
    return fspath(value) if isinstance(value, PathLike) else value


def phrase_of(error: Mapping[str, Any], known: Mapping[str, Any], under: str | None = None) -> str:
    """One of pydantic's errors as a phrase.

    Args:
        error: as `ValidationError.errors` gives it.
        known: the fields that there are, by name.
        under: the key of the recipe that the values stood under.
    """
    key = ".".join(str(part) for part in ([under] if under else []) + list(error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}, wanted {closest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    message: str = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}={briefly(error['input'])}, wanted {message}" if error["loc"] else message


def briefly(value: Any) -> str:
    """A value as a message repeats it; a long one is cut in its middle."""
    return _shortener.repr(value)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 100


def split_names(value: Any) -> Any:
    """The names in a text that separates them by commas; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def split_numbers(value: Any) -> Any:
    """The whole numbers in a text that separates them by commas.

    Raises:
        ValueError: one of them is none.
    """
    if isinstance(value, int):
        return [value]
    parts = split_names(value)
    if isinstance(value, str) and not all(part.isdecimal() for part in parts):
        raise ValueError("whole numbers with commas between, such as 1,4,16")
    return parts


Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""A field of names with commas between."""
Numbers = Annotated[tuple[int, ...], BeforeValidator(split_numbers)]
"""A field of whole numbers with commas between."""
