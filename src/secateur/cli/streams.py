"""Standard output and error as the command needs them: open, never refusing a character, flushed.

A terminal that knows ASCII only shows what it lacks as \\uXXXX, which is an escape of JSON too, so
that no command fails on a sign after an hour of work.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

from secateur.errors import OutputError, plain

_SUBSTITUTES = {"±": "+-", "→": "->", "…": "..."}
"""Signs that the command itself prints -> what an ASCII terminal shows in their place."""
_SCHEME = "secateur"
"""The name of this way to encode, among Python's."""


def prepare_streams() -> None:
    """Make the streams fit to be written to; to be called before any file is opened.

    Raises:
        OutputError: standard output is closed.
    """
    for number in range(3):  # else the next file that is opened is taken for a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_SCHEME, _written_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SCHEME)
    if sys.stdout is None:
        raise OutputError("standard output is closed", hint="> /dev/null, or > FILE")


def tell_line(line: str) -> None:
    """Print a line on standard error, its first word in red on a terminal; never fail."""
    line = plain(line)
    word, _, rest = line.partition(": ")
    with suppress(OSError, ValueError, AttributeError):  # full, closed, None
        if word == "error" and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            line = f"\x1b[31merror:\x1b[0m {rest}"
        print(line, file=sys.stderr, flush=True)


def let_go() -> None:
    """Spare Python its complaint at its end, when it flushes what cannot be written."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _written_out(fault: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that a stream's encoding lacks."""
    if not isinstance(fault, UnicodeEncodeError):
        raise fault
    lacking = fault.object[fault.start : fault.end]
    return "".join(_SUBSTITUTES.get(sign) or _escape(sign) for sign in lacking), fault.end


def _escape(sign: str) -> str:
    """A character as JSON escapes it: one beyond the first plane takes two."""
    data = sign.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{data[at]:02x}{data[at + 1]:02x}" for at in range(0, len(data), 2))
