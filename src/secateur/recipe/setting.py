"""What a setting means, written once, on its field.

    windows: Annotated[int | None, Setting(Mark.CONTENT, unset="all")] = Field(default=None, ge=1)
    '''The help text: of the option, of the recipe and of the Python function.'''

Whatever asks about a setting reads its mark here: options, the dry run, resuming, comparing asked
with told, the report and its recipes. There is no second list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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

from secateur.errors import RecipeError
from secateur.machine.exact import ExactModel
from secateur.machine.paths import as_path
from secateur.recipe.wording import name_of, phrase_of


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
        location: whether it is the name of a file or folder, or may be one.
        part: the part of a method that it belongs to; another method may have another one and still
            be compared with it.
    """

    mark: Mark
    unset: str | None = None
    metavar: str | None = None
    group: bool = False
    location: bool = False
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


class Settings(ExactModel):
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
        plain_values = without_paths(values)
        faults = list(faults_of_locations(cls, plain_values))
        made, cause = None, None
        try:
            made = cls.model_validate(plain_values)
        except ValidationError as fault:
            cause = fault
            for error in fault.errors():
                faults += phrase_of(error, cls.model_fields).splitlines()
        if made is None or faults:
            several = f"{len(faults)} faults in the options of {cls.command}: "
            head = several if len(faults) > 1 else ""
            raise RecipeError(head + " | ".join(faults)) from cause
        return made


def without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with every path as text, alone or in a list."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return list(map(plain, value))
        return fspath(value) if isinstance(value, PathLike) else value

    return {name: plain(value) for name, value in values.items()}


def faults_of_locations(settings: type[BaseModel], values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the names of files and folders, a phrase each; they need not exist."""
    for field in settings.model_fields:
        named = values.get(field) if setting_of(settings, field).location else None
        for name in named if isinstance(named, list | tuple) else [named]:
            if isinstance(name, str):
                try:
                    as_path(name, fault=RecipeError)
                except RecipeError as fault:
                    yield f"{name_of(field)}: {fault}"


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
    if isinstance(value, str) and not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise ValueError("whole numbers with commas between, such as 1,4,16")
    return parts


def one_or_several(value: Any) -> Any:
    """A text, or a list of several of them; a list of one is that text.

    Raises:
        ValueError: it is neither.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("text, or a list of texts")
    if not all(isinstance(one, str) for one in value):
        raise ValueError("text, or a list of texts")
    return value[0] if len(value) == 1 else list(value)


def split_shares(value: Any) -> Any:
    """The positive numbers in a text that separates them by commas, or in a list.

    Raises:
        ValueError: one of them is none.
    """
    if value is None:
        return None
    parts = split_names(value)
    parts = parts if isinstance(parts, list | tuple) else [parts]
    try:
        if not parts or any(isinstance(part, bool) for part in parts):
            raise ValueError
        shares = tuple(float(part) for part in parts)
        if not all(math.isfinite(share) and share > 0 for share in shares):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError("positive numbers with commas between, such as 2,1,1") from None
    return shares


def as_written(value: Any) -> Any:
    """Numbers as text, alone or in a mapping: a ratio or a block may stand in a file as one."""
    if isinstance(value, Mapping):
        return {name: as_written(one) for name, one in value.items()}
    return str(value) if type(value) in (int, float) else value


WRITTEN = BeforeValidator(as_written)
"""Stands beside the type of a text that may be given as a number."""
LISTED = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
"""Stands beside the type of a list of which one may stand alone."""

SEVERAL = BeforeValidator(one_or_several)
"""Stands beside the type of a text of which there may be several: `str | list[str]`."""

Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""A field of names with commas between."""
Numbers = Annotated[tuple[int, ...], BeforeValidator(split_numbers)]
"""A field of whole numbers with commas between."""
Shares = Annotated[tuple[float, ...], BeforeValidator(split_shares)]
"""A field of positive numbers with commas between, of which only their ratios count."""
