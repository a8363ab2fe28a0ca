"""What a run shows while it lasts: JSON lines for programs, bars for people."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from secateur.cli.terminal import amount, print_table, table
from secateur.progress import JsonLines, Progress, Quiet, TerminalBars


def play(progress: Progress) -> None:
    """A short run with everything in it."""
    with progress as shown:
        shown.notice("sequences are 64 tokens")
        shown.begin("prune", 2)
        for block in range(2):
            shown.tick("observe", 0, 3)
            shown.tick("observe", 2, 3)
            shown.tick("optimise", 0, 5)
            shown.block(
                block=block, blocks=2, sparsity=0.5, output_error=0.123456, seconds={"load": 0.1}
            )


def terminal(width: int = 100, height: int = 24) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return (
        Console(file=stream, force_terminal=True, width=width, height=height, color_system=None),
        stream,
    )


CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def shown(text: str) -> str:
    """What is to be read of a terminal's text."""
    return CONTROL.sub("", text)


# --- JSON lines ---


def test_json_lines_are_one_object_each() -> None:
    stream = io.StringIO()
    play(JsonLines(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events == [
        {"event": "notice", "text": "sequences are 64 tokens"},
        *(
            {
                "event": "block",
                "of": "prune",
                "block": block,
                "blocks": 2,
                "sparsity": 0.5,
                "output_error": 0.123456,
                "seconds": {"load": 0.1},
            }
            for block in range(2)
        ),
    ]


def test_json_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    play(JsonLines())
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 3


def test_json_lines_stay_lines_whatever_the_text() -> None:
    stream = io.StringIO()
    JsonLines(stream).notice('two\nlines, "quotes" and \u2028')
    assert len(stream.getvalue().splitlines()) == 1
    assert json.loads(stream.getvalue())["text"].startswith("two\nlines")


def test_json_lines_come_at_once() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    play(JsonLines(stream))
    assert stream.flushed >= 3


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    play(Quiet())
    assert capsys.readouterr() == ("", "")


# --- bars ---


def test_bars_show_what_goes_on() -> None:
    console, stream = terminal(width=160)
    with TerminalBars(console) as bars:
        bars.begin("prune", 4)
        bars.tick("observe", 1, 3)
        bars._bars.refresh()
        seen = shown(stream.getvalue())
        assert "prune" in seen
        assert "0/4" in seen
        assert "observe" in seen
        assert "1/3" in seen
        assert "left" in seen
        bars.block(block=0, blocks=4, sparsity=0.5, output_error=0.123456, seconds={"load": 0.1})
        bars._bars.refresh()
        seen = shown(stream.getvalue())
        assert "1/4" in seen
        assert "output_error 0.1235" in seen
        assert "load" not in seen


def test_bars_survive_a_run_and_leave_the_screen() -> None:
    console, stream = terminal()
    play(TerminalBars(console))
    text = stream.getvalue()
    assert "notice sequences are 64 tokens" in shown(text)
    assert text.endswith("\x1b[2K")  # the last thing is that the bars' lines are wiped
    assert "\x1b[?25h" in text  # and the cursor is back


def test_bars_are_wiped_after_an_error() -> None:
    console, stream = terminal()
    bars = TerminalBars(console)

    def fail() -> None:
        with bars:
            bars.begin("prune", 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "\x1b[?25h" in stream.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_bars_keep_within_the_screen(width: int) -> None:
    console, _ = terminal(width=width)
    bars = TerminalBars(console)
    bars.begin("prune", 32)
    bars.tick("propagate", 1, 3)
    bars.block(block=1, blocks=32, sparsity=0.5, output_error=0.123456, seconds={"load": 0.1})
    bars.tick("propagate", 1, 3)
    lines = console.render_lines(bars._bars.get_renderable())
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)
    if width >= 80:
        assert len(lines) == 2


def test_a_notice_is_shown_as_it_is() -> None:
    """Paths may hold brackets, which are markup to rich."""
    console, stream = terminal(width=300)
    with TerminalBars(console) as bars:
        bars.notice("'/data/[bold]/texts[/].txt' holds :smile: 8 sequences")
    assert "'/data/[bold]/texts[/].txt' holds :smile: 8 sequences" in shown(stream.getvalue())


# --- tables ---


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (1000, "", "1 k"),
        (13_500_000, "", "13.5 M"),
        (13_500_000, "B", "13.5 MB"),
        (7, "B", "7 B"),
        (2e12, "FLOP", "2 TFLOP"),
        (5e15, "", "5 P"),
        (999_999, "B", "1 MB"),
    ],
)
def test_amounts(count: float, unit: str, text: str) -> None:
    assert amount(count, unit) == text


def test_a_table_has_a_line_per_row() -> None:
    console, stream = terminal(width=60)
    console.print(table(["matrices", "zeros"], [["self_attn.q_proj", "50%"], ["b", "1%"]]))
    lines = [line.rstrip() for line in shown(stream.getvalue()).splitlines() if line.strip()]
    assert lines == [
        "matrices          zeros",
        "self_attn.q_proj    50%",
        "b                    1%",
    ]


def test_a_table_in_a_pipe_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    heads = ["", *(f"perplexity of text {number}" for number in range(8))]
    print_table(heads, [["2:4  wanda", *["12.3456 ± 0.1234"] * 8]])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ")[-1] == heads[-1]
    assert second.count("12.3456 ± 0.1234") == 8
