"""Every option of every command is given what no option can mean: one line, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny import Command

NUMBERS = ("1" * 18, "9" * 5000, "-1", "x")
NAMES = ("", "n" * 300, "~nosuchuser/x")
SIZES = {
    "prune": ["samples", "written", "batch-size", "sequence-length", "windows", "dense-first",
              "expert-tokens", "seed"],
    "evaluate": ["windows", "limit", "batch-size", "sequence-length"],
    "recover": ["rank", "steps", "batch-size", "accumulation", "samples", "validation", "patience",
                "evaluate-every", "warm-up", "windows", "sequence-length"],
    "compare": ["recover", "limit", "samples", "seeds", "written"],
    "bench": ["batches", "prompt", "new-tokens", "repeats"],
}  # fmt: skip
"""Command -> its options that are numbers."""
PLACES = {
    "prune": ["out", "calibration", "images", "text", "also-text", "gradients", "save-gradients"],
    "evaluate": ["text", "images", "against", "include-path"],
    "recover": ["out", "text", "heldout", "dense"],
    "compare": ["out", "text", "include-path", "gradients"],
    "demo": ["out"],
    "report": ["out"],
    "pack": ["out"],
    "unpack": ["out"],
}
"""Command -> its options that are files or folders."""
NEEDED = {
    "prune": ["m"], "evaluate": ["m", "--text", "builtin"], "bench": ["m"], "demo": [],
    "recover": ["m", "--text", "t", "--out", "o"], "report": ["m"], "pack": ["m", "--out", "o"],
    "compare": ["m", "--out", "o", "--text", "builtin"], "unpack": ["m", "--out", "o"],
}  # fmt: skip
"""Command -> what it needs to be read at all."""
OTHERS = [
    ["prune", "m", "--device", "cpu:7"],
    ["prune", "m", "--set", f"alpha={'9' * 5000}"],
    ["prune", "m", "--set", "alpha=" + "[" * 900],
    ["prune", "m", "--pattern", "9" * 5000 + "%"],
    ["prune", "m", "--pattern", "9" * 5000 + ":" + "9" * 5000],
    ["prune", "m", "--blocks", "9" * 5000],
    ["prune", "m", "--method", "m" * 5000],
    ["prune", "m", "--recipe", "n" * 300],
    ["prune", "~nosuchuser/x", "--method", "magnitude", "--out", "o"],
    ["recover", "m", "--text", "t", "--out", "o", "--learning-rate", "inf"],
    ["recover", "m", "--text", "t", "--out", "o", "--alpha", "nan"],
    ["compare", "m", "--out", "o", "--text", "t", "--methods", "n" * 5000],
    ["bench", "m", "--forms", "n" * 5000],
    ["report", "n" * 300],
    ["report", "~nosuchuser/x"],
    ["report", ""],
    ["check", "n" * 300],
    ["check", "m\udcff"],
    ["evaluate", "n" * 300, "--text", "builtin"],
    ["n" * 5000],
    ["prune", "m", "--" + "n" * 5000],
]


def command_lines() -> Iterator[list[str]]:
    for values, options_by_command in ((NUMBERS, SIZES), (NAMES, PLACES)):
        for command, names in options_by_command.items():
            for name in names:
                for value in values:
                    yield [command, *NEEDED[command], f"--{name}", value]
    yield from OTHERS


@pytest.mark.parametrize("name", sorted({line[0][:9] for line in command_lines()}))
def test_a_hostile_command_line_costs_one_line(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in command_lines():
        if arguments[0][:9] == name:
            outcome = command(*arguments)
            what = " ".join(argument[:30] for argument in arguments)
            assert outcome.status == 2, f"{what}: {outcome.err}"
            (line,) = outcome.err.splitlines()
            assert line.startswith("error: "), what
            assert len(line) < 1000, what
            if len(arguments) > 2 and arguments[-2][2:] in SIZES.get(name, ()):
                assert arguments[-2] in line, f"{what}: {line}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dense-first", "-3"], "--dense-first -3, wanted at least 0"),
        (["--samples", "1" * 12], "--samples 111111111111, wanted at most 1000000"),
        (["--samples", "many"], "--samples many, wanted a whole number"),
        (["--set", "regional.rounds=0"], "--set regional.rounds=0, wanted at least 1"),
        (["--set", "alpha=big"], "--set alpha=big, wanted a number"),
        (["--windows", "3"], "--windows 3 are those of --text: give both"),
        (["--method", "wanda", "--effort", "best"], "no regional optimiser: leave --effort out"),
        (["--method", "wanda", "--preset", "paper"], "no regional optimiser: leave --preset out"),
        (["--out", ""], "--out: '' can be no path"),
        (["--gradients", "g"], "leave --gradients out"),
        (["--block-inputs", "tape"], "--block-inputs tape, wanted one of auto, memory, disk"),
    ],
)
def test_a_fault_is_named_as_it_was_typed(
    arguments: list[str], said: str, command: Command, tmp_path: Path
) -> None:
    outcome = command("prune", tmp_path, *arguments)
    assert outcome.status == 2
    assert said in outcome.err
