"""Makes the options of a command from the fields of its settings: nothing is written twice.

    @app.command()
    @options_of(Recovery)
    def recover(values: Given, ...) -> None:
        settings = Recovery.build(values)

A field gives the name of its option, the help text, the default, what None stands for, and what
its value is called (`Setting.unset`, `Setting.metavar`). Numbers, bounds and choices are the
record's to read and check: it names everything that is wrong at once.

    str, int, float     --name VALUE            bool                --name
    list[...]           repeated                tuple[...]          --name A,B
    dict[str, str]      --name REGEX=VALUE      dict[str, Any]      --set NAME=VALUE, all of them

`docs/decisions/0019-options-from-fields.md` compares the ways to do this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Concatenate, Literal, Optional, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from rich.markup import escape

from secateur.errors import RecipeError
from secateur.recipe.setting import Setting, setting_of
from secateur.recipe.wording import ARGUMENT, UNNAMED, on_command_line, option_name
from secateur.recipe.yaml_file import read_value

Given = Mapping[str, Any]
"""What stands on the command line, by field; an option that was not given is not in it."""

SET = "set"
"""The option that gives the entries of all mappings to any value, one NAME=VALUE at a time."""


@dataclass(frozen=True)
class Fields:
    """Some of the fields of a class of settings."""

    settings: type[BaseModel]
    names: Iterable[str]


def options_of(
    *sources: type[BaseModel] | Fields, without: Collection[str] = (), complete: bool = True
) -> Callable[[Callable[Concatenate[Given, ...], None]], Callable[..., None]]:
    """A decorator: the command takes the options of these settings before those of its own.

    Args:
        sources: settings, all of their fields or some; of two fields with one name the first.
        without: fields that no option is made of.
        complete: a field without a default must be given; False where a file may hold it.

    Raises:
        TypeError: no option can be made of a field, which is a fault of the program.
    """
    fields: dict[str, type[BaseModel]] = {}
    for source in sources:
        some = source if isinstance(source, Fields) else Fields(source, source.model_fields)
        for name in some.names:
            if name not in without:
                fields.setdefault(name, some.settings)
    mappings = [name for name in fields if _type(fields[name], name) == dict[str, Any]]
    made = [_parameter(fields[name], name, complete) for name in fields if name not in mappings]
    if mappings:
        made.append(_set(fields, mappings))

    def decorate(command: Callable[Concatenate[Given, ...], None]) -> Callable[..., None]:
        _, *others = signature(command, eval_str=True).parameters.values()

        def run(context: typer.Context, **words: Any) -> None:
            rest = {other.name: words.pop(other.name) for other in others}
            given = {name: word for name, word in words.items() if _is_given(context, name)}
            settings = _read_settings(given.pop(SET, []), mappings)
            typed = {*given, *settings}
            pairs = {
                name: _read_pairs(option_name(name), given[name], setting_of(fields[name], name))
                for name in given
                if get_origin(_type(fields[name], name)) is dict
            }
            with on_command_line(typed):
                command({**given, **pairs, **settings}, **rest)

        first = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        every = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (first, *made, *others)
        ]
        run.__signature__ = Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def help_text(settings: type[BaseModel], name: str) -> str:
    """The text of a field as one line, and the choices that it does not name itself."""
    text = " ".join((settings.model_fields[name].description or "").split())
    form = _type(settings, name)
    choices = get_args(form) if get_origin(form) is Literal else ()
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    return escape(text)


def _parameter(settings: type[BaseModel], name: str, complete: bool) -> Parameter:
    """The parameter that typer makes the option of a field from."""
    field, setting, form = (
        settings.model_fields[name],
        setting_of(settings, name),
        _type(settings, name),
    )
    word = _word(form, f"{settings.__name__}.{name}")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    metavar = setting.metavar
    if get_origin(form) is tuple and default is not None:
        default = ",".join(map(str, default))
    elif get_origin(form) is dict:
        default = []
    elif get_origin(form) is list:
        metavar = metavar or f"<{get_args(form)[0].__name__}>"
    elif form in (int, float):
        metavar = metavar or f"<{form.__name__}>"
    facts: dict[str, Any] = {"help": help_text(settings, name), "metavar": metavar}
    if default is None:
        facts["show_default"] = setting.unset or False
    if name == ARGUMENT:
        made = typer.Argument(**{**facts, "metavar": name.upper()})
    else:
        made = typer.Option(option_name(name), **facts)
    needed = field.is_required() and complete
    if default is None and not needed:
        word = Optional[word]  # noqa: UP045 - made while it runs
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        annotation=Annotated[word, made],
        default=Parameter.empty if needed else default,
    )


def _set(fields: Mapping[str, type[BaseModel]], mappings: list[str]) -> Parameter:
    """The one option for the entries of all mappings."""
    text = " ".join(help_text(fields[name], name) for name in mappings) + " May be repeated."
    made = typer.Option(f"--{SET}", metavar="NAME=VALUE", help=text)
    return Parameter(SET, Parameter.KEYWORD_ONLY, annotation=Annotated[list[str], made], default=[])


def _type(settings: type[BaseModel], name: str) -> Any:
    """The type of a field, without None and what is annotated."""
    form = settings.model_fields[name].annotation
    if get_origin(form) in (Union, UnionType):
        parts = [part for part in get_args(form) if part is not NoneType]
        lists = [part for part in parts if get_origin(part) is list]  # of what may stand alone
        (form,) = lists or parts
    return get_args(form)[0] if get_origin(form) is Annotated else form


def _word(form: Any, name: str) -> Any:
    """The type that typer reads the option of a field as; numbers are the record's to read."""
    if form is bool:
        return form
    if form in (str, int, float) or get_origin(form) is Literal:
        return str
    if get_origin(form) is list:
        return GenericAlias(list, _word(get_args(form)[0], name))
    if get_origin(form) is tuple and get_args(form)[0] in (str, int, float):
        return str
    if form == dict[str, str]:
        return list[str]
    raise TypeError(f"no option can be made of {name}, which is {form}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read_pairs(option: str, pairs: list[str], setting: Setting) -> dict[str, str]:
    """What stands before and after the last equals sign: an expression may hold one, too.

    Raises:
        RecipeError: there is none.
    """
    read = {}
    for pair in pairs:
        key, _, value = pair.rpartition("=")
        if not key:
            raise RecipeError(f"{option} {pair!r}", wanted=setting.metavar or "NAME=VALUE")
        read[key] = value
    return read


def _read_settings(pairs: list[str], mappings: list[str]) -> dict[str, dict[str, Any]]:
    """Every NAME=VALUE of --set, by the mapping it belongs to.

    Raises:
        RecipeError: one cannot be read, or there is no such mapping.
    """
    read: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise RecipeError(f"--{SET} {pair!r}", wanted="NAME=VALUE, such as alpha=10")
        mapping, _, key = name.rpartition(".")
        if mapping and (mapping not in mappings or mapping == UNNAMED):
            others = [f"{other}.NAME" for other in mappings if other != UNNAMED]
            raise RecipeError(f"--{SET} {name!r}", wanted=" or ".join(["NAME", *others]))
        read.setdefault(mapping or UNNAMED, {})[key] = read_value(text)
    return read
