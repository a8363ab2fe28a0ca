"""Settings that take no value for another one, as pydantic does: true is no number."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class ExactModel(BaseModel):
    """A base of settings: where a number is wanted, true and false are refused, which are 1 and 0
    to Python."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        several = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(one, bool) for one in several) and info.field_name is not None:
            types = set(_parts(cls.model_fields[info.field_name].annotation))
            if bool not in types and types & {int, float}:
                raise ValueError("a whole number" if float not in types else "a number")
        return value


def _parts(annotation: Any) -> list[Any]:
    """The types that an annotation is made of, such as int and None of `int | None`."""
    inner = get_args(annotation)
    return [annotation, *(part for one in inner for part in _parts(one))]
