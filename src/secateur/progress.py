"""How a run is shown while it lasts: nested bars on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from secateur.errors import plain
from secateur.machine import waiting


class Progress(Protocol):
    """Told what happens. Used as a context manager around one piece of work."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def begin(self, what: str, total: int) -> None:
        """A piece of work of `total` blocks begins."""

    def tick(self, phase: str, done: int, total: int) -> None:
        """Within a block: `done` of `total` steps of a phase are done."""

    def block(self, **facts: Any) -> None:
        """One more block is done; `facts` are worth a line."""

    def notice(self, text: str) -> None:
        """Something the user should know and may want to change."""


class Quiet:
    """Shows nothing: for callers from Python."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""

    def begin(self, what: str, total: int) -> None:
        """Show nothing."""

    def tick(self, phase: str, done: int, total: int) -> None:
        """Show nothing."""

    def block(self, **facts: Any) -> None:
        """Show nothing."""

    def notice(self, text: str) -> None:
        """Show nothing."""


class JsonLines(Quiet):
    """One JSON object per block and per notice: for logs and other programs.

    All that is told is what a `waiting.Watch` says is being done, where nothing else is said.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._what = ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing of this piece of work is being done any more."""
        waiting.innermost().forget()

    def begin(self, what: str, total: int) -> None:
        """Remember what is going on; the lines name it."""
        self._what = what
        waiting.innermost().begin(what, total)

    def tick(self, phase: str, done: int, total: int) -> None:
        """Remember what goes on within the block."""
        waiting.innermost().at(phase, done, total)

    def block(self, **facts: Any) -> None:
        """A line for the block."""
        waiting.innermost().block()
        waiting.tell(self._stream, {"event": "block", "of": self._what, **facts})

    def notice(self, text: str) -> None:
        """A line for the notice."""
        waiting.tell(self._stream, {"event": "notice", "text": text})


class TerminalBars(Quiet):
    """A bar over the blocks with the time left, and one over the phase within the block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
        )
        self._outer = self._bars.add_task("", total=None, facts="", visible=False)
        self._inner = self._bars.add_task("", total=None, facts="", visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def begin(self, what: str, total: int) -> None:
        """Start the outer bar."""
        self._bars.reset(self._outer, total=total, description=what, visible=True, facts="")

    def tick(self, phase: str, done: int, total: int) -> None:
        """Move the inner bar."""
        self._bars.update(self._inner, description=phase, completed=done, total=total, visible=True)

    def block(self, **facts: Any) -> None:
        """Move the outer bar, and show the last block's facts beside it."""
        shown = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in facts.items()
            if not isinstance(value, dict)
        )
        self._bars.update(self._outer, advance=1, facts=shown)
        self._bars.update(self._inner, visible=False)

    def notice(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(Text.assemble(("notice ", "yellow"), plain(text)), soft_wrap=True)
