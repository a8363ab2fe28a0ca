"""Every line of every `--help`, read as someone would who has not read the code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from secateur import __version__
from secateur.cli.commands import app
from tiny import Command

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands
OPTIONS = [
    pytest.param(command, parameter, id=f"{name} {parameter.opts[0]}")
    for name, command in COMMANDS.items()
    for parameter in command.params
]
RIDDLES = ("Of ", "What must", "At its", "Such as", "Scale times", "Steps.")
"""Beginnings that someone who reads --help can make nothing of."""
VALUE = re.compile(r"(--)?[a-z0-9][a-z0-9_+.-]*(, [a-z0-9_+.-]+)*:")
"""The value of an option, and what it does after the colon."""
VERBS = """
    add adapt aims allows are ask asks calibrate change check compare compute count decay decode
    demand derives do does draw draws evaluate falls gave give gives go goes hold is judge keep
    keeps knows learn leave let lists lose make makes matches measure means needs print prune
    reaches read repeat replace rises run runs says score sees sends set share shorten show stands
    stays stop take takes time train want weigh works write writes
"""
"""A text without one of them is a riddle, unless it has another, which then belongs here."""


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no option's text is broken into lines."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_an_option_says_in_a_sentence_what_it_does(command: Any, parameter: Any) -> None:
    text = parameter.help
    assert text, "no text of its own"
    assert not text.startswith(RIDDLES)
    assert text[0].isupper() or VALUE.match(text), text
    assert text.endswith("."), text
    assert set(VERBS.split()) & set(re.findall(r"[a-z]+", text.lower())), f"no verb: {text}"
    assert "\n" not in text
    twins = [other for other in command.params if other.help == text]
    assert twins == [parameter]


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_a_default_is_shown(
    command: Any, parameter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    default = parameter.default
    if default is None:
        assert isinstance(parameter.show_default, str | bool)
    elif default not in (False, []) and not parameter.required:
        context = typer.Context(command)
        assert parameter._extract_default_help_str(ctx=context) == default
        assert parameter.show_default


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_a_sentence_what_it_does(name: str) -> None:
    text = COMMANDS[name].help
    assert text[0].isupper()
    assert text.endswith(".")
    first = text.split()[0].lower()
    assert first in {*VERBS.split(), "put", "list", "prove"}
    assert not text.startswith(RIDDLES)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_holds_an_emoji(name: str, command: Command, wide: None) -> None:
    """`:M:` is one to rich, and stands in `N:M: ...`."""
    status, out, err = command(name, "--help")
    assert (status, err) == (0, "")
    drawn = set("─│╭╮╰╯")
    assert {letter for letter in out if ord(letter) > 0x7F} <= drawn
    for parameter in COMMANDS[name].params:
        assert parameter.help.replace("\\[", "[") in out


@pytest.mark.parametrize("name", ["prune", "compare"])
def test_the_pattern_is_explained(name: str, command: Command, wide: None) -> None:
    assert (
        "N:M, such as 2:4: N of every M weights along the input are KEPT"
        in command(name, "--help").out
    )


def test_the_first_page_names_every_command(command: Command, wide: None) -> None:
    page = command("--help").out
    for name, facts in COMMANDS.items():
        assert re.search(rf"^. {name} +{re.escape(facts.help.split()[0])}", page, re.MULTILINE)


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"secateur {__version__}\n", "")
