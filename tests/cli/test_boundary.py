"""However a command ends, it ends on one line and with the exit status of its kind."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from secateur import cli
from secateur.cli import commands, terminal
from secateur.errors import (
    CheckFailedError,
    ExitCode,
    LostError,
    OutputError,
    RecipeError,
    SecateurError,
    plain,
)
from tiny import Command

NO_SPACE = os.strerror(errno.ENOSPC)


def ends_with(fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of every command ends with a fault."""

    def fail(arguments: Sequence[str]) -> int:
        raise fault

    monkeypatch.setattr(commands, "run_command", fail)


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (CheckFailedError("one"), ExitCode.CHECK_FAILED, "error: one"),
        (RecipeError("two", hint="three"), ExitCode.REFUSED, "error: two; try three"),
        (LostError("gone"), ExitCode.REFUSED, "error: gone"),
        (OSError(errno.ENOSPC, NO_SPACE, "/a/b"), ExitCode.REFUSED, f"says: {NO_SPACE} in /a/b"),
        (OSError(errno.EXDEV, "link", "a", None, "b"), ExitCode.REFUSED, "link in a and b"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), ExitCode.REFUSED, "in x"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ExitCode.REFUSED, "pipe; try a pipe that"),
        (MemoryError(), ExitCode.REFUSED, "not enough memory; try --batch-size 1"),
        (torch.OutOfMemoryError("CUDA: 3 GiB. GPU 0"), ExitCode.REFUSED, "memory (CUDA: 3 GiB)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            ExitCode.REFUSED,
            "not enough memory",
        ),
        (KeyError("lm_head"), ExitCode.UNEXPECTED, "unexpected KeyError: 'lm_head'; try"),
        (AssertionError(), ExitCode.UNEXPECTED, "unexpected AssertionError; try"),
        (OSError("no file named model.bin"), ExitCode.UNEXPECTED, "unexpected OSError"),
        (RecursionError("deep\nand long"), ExitCode.UNEXPECTED, "--debug"),
        (SystemExit(1), ExitCode.UNEXPECTED, "unexpected SystemExit"),
        (ValueError("x" * 9999), ExitCode.UNEXPECTED, "unexpected ValueError"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, BaseException) else None,
)
def test_every_end_is_one_line(
    fault: BaseException,
    status: int,
    said: str,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends_with(fault, monkeypatch)
    outcome = command("check", "model")
    (line,) = outcome.err.splitlines()
    assert outcome.status == status
    assert said in line
    assert len(line) < 600


def test_debug_shows_where_and_keeps_the_status(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_with(KeyError("lm_head"), monkeypatch)
    outcome = command("check", "model", "--debug")
    assert outcome.status == ExitCode.UNEXPECTED
    assert "Traceback" in outcome.err
    assert "in fail" in outcome.err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_unwinds(name: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unfinished is put away; a signal that was ignored stays so."""
    put_away = []

    def work(arguments: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            raise AssertionError("the signal did not end it")
        except Exception:
            raise
        finally:
            os.kill(os.getpid(), getattr(signal, name))  # again, by who is impatient
            put_away.append(name)

    monkeypatch.setattr(commands, "run_command", work)
    before = signal.getsignal(getattr(signal, name))
    outcome = command("check", "model")
    word = {"SIGTERM": "terminated", "SIGHUP": "hung up", "SIGINT": "interrupted"}[name]
    assert (outcome.status, outcome.err) == (128 + getattr(signal, name), f"{word}\n")
    assert put_away == [name]
    assert signal.getsignal(getattr(signal, name)) is before


SLOW = """
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer":
            print("loading", flush=True)
            try:
                time.sleep(60)
            except BaseException:
                pass  # as libraries do that try several modules in turn

sys.meta_path.insert(0, Slow())
sys.argv = ["secateur", "methods"]
from secateur.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_while_importing_ends_at_once(number: int, status: int, word: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, f"{word}\n")


LIGHT = """
import sys
sys.argv = ["secateur", "methods"]
from secateur import cli
assert not {"torch", "transformers", "pydantic"} & set(sys.modules)
"""


def test_the_entry_loads_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


ALL_COMMANDS = """
import sys
import secateur.cli.commands
heavy = {"transformers.modeling_utils", "transformers.core_model_loading",
         "transformers.quantizers", "torch._dynamo", "sympy", "scipy", "peft", "lm_eval"}
print(sorted(heavy & set(sys.modules)))
"""


def test_help_and_faults_wait_for_no_code_of_models() -> None:
    """It takes as long to load as everything else together."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_COMMANDS], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


class _Closed(io.StringIO):
    """A stream that the system refuses to write to."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["--version"]])
def test_a_closed_or_full_output_is_one_line(
    number: int,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    monkeypatch.setattr(sys, "stdout", _Closed(number))
    monkeypatch.setattr(terminal, "out", terminal.PipedConsole())  # it keeps what it cannot write
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # not of the process that tests
    with pytest.raises(SystemExit) as leave:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert leave.value.code == ExitCode.REFUSED
    assert line.startswith(f"error: standard output cannot be written ({os.strerror(number)})")


def test_a_closed_output_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["secateur", "methods"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert leave.value.code == ExitCode.REFUSED
    assert capsys.readouterr().err.startswith("error: standard output is closed; try")


def test_an_ascii_terminal_shows_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")

    def work(arguments: Sequence[str]) -> int:
        terminal.say("14.20 ± 0.11 on \u4e66")
        terminal.print_table(["task"], [["\U0001f600 → é\udcff"]])
        terminal.say_exactly(json.dumps({"text": "é\U0001f600"}, ensure_ascii=False))
        return 0

    monkeypatch.setattr(commands, "run_command", work)
    monkeypatch.setattr(sys, "argv", ["secateur"])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert leave.value.code == 0, capsys.readouterr().err
    first, *_, last = written.getvalue().decode("ascii").splitlines()
    assert first == "14.20 +- 0.11 on \\u4e66"
    assert json.loads(last) == {"text": "é\U0001f600"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is: ± é 书\n\tnext", "as it is: ± é 书\n\tnext"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwritten\x9b31m", "over\\rwritten\\x9b31m"),
        ("turned \u202e round", "turned \\u202e round"),
        ("half \udcff", "half \\udcff"),
    ],
)
def test_a_strangers_text_commands_nothing(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_no_error_commands_a_terminal() -> None:
    assert str(SecateurError("a\x1b[31m", where="b\x07")) == "a\\x1b[31m in b\\x07"
    assert OutputError("x").exit_code == ExitCode.REFUSED


def test_the_statuses_are_documented() -> None:
    """The list of the README is the list of the program."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {code.value} |" in text
