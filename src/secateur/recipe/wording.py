"""How a setting is named to whoever gave it, and what pydantic says of it in our words.

    on the command line    --dense-first -3, --set alpha=-1
    in a recipe file       dense_first=-3      (the key, as in Python)
    in Python              dense_first=-3

The command says which options were typed; everywhere else nothing was.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from secateur.errors import closest

_typed: ContextVar[frozenset[str] | None] = ContextVar("_typed", default=None)
"""Fields that stand on the command line; None where there is none."""
ARGUMENT = "model"
"""The field that the command line gives by its position, without a name."""
UNNAMED = "parameters"
"""The mapping whose entries --set takes by their name alone; MAPPING.NAME is one of another."""
_GROUPS = {UNNAMED: "", "regional": "regional."}
"""Mapping of settings -> how --set names what is in it."""
_WANTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
}
_WANTED_BY_TYPE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "dict": "settings by their names, such as alpha: 10",
    "list": "a list",
    "tuple": "a list, or values with commas between",
}


@contextmanager
def on_command_line(typed: Collection[str]) -> Iterator[None]:
    """Inside, settings are named as options; those in `typed` were given so."""
    token = _typed.set(frozenset(typed))
    try:
        yield
    finally:
        _typed.reset(token)


def option_name(field: str) -> str:
    """What the option of a field is called on the command line."""
    return "--" + field.replace("_", "-")


def name_of(field: str) -> str:
    """What whoever is told of a setting should give, or leave out."""
    if _typed.get() is None:
        return field
    return field.upper() if field == ARGUMENT else option_name(field)


def as_given(path: tuple[Any, ...], value: Any) -> str:
    """A setting with its value, as it was given.

    Args:
        path: the field, and what is inside it: ("regional", "rounds").
        value: what stands there.
    """
    field, *inside = map(str, path)
    if field not in (_typed.get() or ()) or (field in _GROUPS and not inside):
        return f"{'.'.join([field, *inside])}={briefly(value)}"
    if field in _GROUPS:
        return f"--set {_GROUPS[field]}{'.'.join(inside)}={_as_typed(value)}"
    return f"{name_of(field)} {_as_typed(value)}"


def _as_typed(value: Any) -> str:
    text = briefly(value)
    plain_word = isinstance(value, str) and re.fullmatch(r"[\w.,:%+-]+", value)
    return text.strip("'") if plain_word else text


def phrase_of(error: Mapping[str, Any], known: Mapping[str, Any], under: str | None = None) -> str:
    """One of pydantic's errors as a phrase.

    Args:
        error: as `ValidationError.errors` gives it.
        known: the fields that there are, by name.
        under: the key of the recipe that the values stood under.
    """
    path = (*([under] if under else []), *error["loc"])
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        return f"unknown key {briefly(key)}, wanted {closest(str(error['loc'][-1])[:40], known)}"
    if error["type"] == "missing":
        return f"{name_of(key)} is missing"
    return f"{as_given(path, error['input'])}, wanted {_wanted(error)}" if path else _wanted(error)


def _wanted(error: Mapping[str, Any]) -> str:
    """What would have been right."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        given = error["input"]  # of other types, which may unfold without end, nothing resembles
        return closest(given[:40] if isinstance(given, str) else "", choices)
    if kind in _WANTED:
        return _WANTED[kind].format_map({name: _number(bound) for name, bound in context.items()})
    by_type = _WANTED_BY_TYPE.get(kind.partition("_")[0])
    if by_type is not None and kind.endswith(("_type", "_parsing")):
        return by_type
    message: str = error["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _number(bound: Any) -> Any:
    """A bound as one writes it: 0.0 is 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def briefly(value: Any) -> str:
    """A value as a message repeats it; a long one is cut in its middle."""
    return _shortener.repr(value)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 100
