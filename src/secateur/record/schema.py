"""What may stand in a record: anybody may have written it, and it is read, shown and exported.

Numbers are finite and of a size that adds up, names lead nowhere, and settings have the types of
their fields; that a setting makes sense is for whoever uses it to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from secateur.recipe.stage import STAGES
from secateur.recipe.wording import phrase_of

_LONGEST_NAME = 255
"""Bytes of a file's name: what the common file systems take."""


class RecordPart(BaseModel):
    """A part of the record of a run: frozen, and described field by field."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


WholeNumber = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things. 2**53 is what a float counts exactly, and far beyond weights and bytes."""
Measured = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]
"""Seconds or an error: what is larger overflows where it is squared."""


def _inside(name: str) -> str:
    """The name of a file in a folder, or in a folder of it.

    Raises:
        ValueError: it leads elsewhere, or no file can have it.
    """
    parts = PurePosixPath(name).parts
    if (
        not parts
        or PurePosixPath(name).is_absolute()
        or ".." in parts
        or not name.isprintable()
        or any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
    ):
        raise ValueError("wanted the name of a file in the folder")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
"""The name of a file in the record's folder, or in a folder of it."""


def typed_settings(settings: Mapping[str, Any], known: type[BaseModel]) -> dict[str, Any]:
    """Settings of a record in the types of their fields, and in their one spelling.

    Args:
        settings: as the record has them; keys that this version does not know are let be.
        known: the class of settings that they are of.

    Raises:
        ValueError: one is of another type; the first is named.
    """
    needed = {name: "" for name, field in known.model_fields.items() if field.is_required()}
    given = {name: value for name, value in settings.items() if name in known.model_fields}
    given.pop(STAGES, None)  # they stand in records of their own
    try:
        read = known.model_validate({**needed, **given}, strict=True)
    except ValidationError as fault:
        raise ValueError(phrase_of(fault.errors()[0], known.model_fields)) from fault
    return {**settings, **read.model_dump(include=set(given))}
