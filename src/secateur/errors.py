"""The exceptions a person may meet: what was wrong, where, what was wanted, what to try.

Every error that bad input can cause is a `SecateurError`. Its text is one line, made of up to four
parts, so that the command can print it as it is and a script can read the parts:

    what [in WHERE] [; wanted WANTED] [; try HINT]
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Every status that the command leaves with when it did not succeed."""

    CHECK_FAILED = 1
    """A proof did not hold; nothing else is called 1."""
    REFUSED = 2
    """Something that the user can mend: bad input, no space, no right, not enough memory."""
    UNEXPECTED = 3
    """A fault of the program, or of a library below it; --debug shows where."""
    HUNG_UP = 129
    """SIGHUP: its terminal was closed."""
    INTERRUPTED = 130
    """SIGINT: Ctrl-C."""
    TERMINATED = 143
    """SIGTERM."""


class SecateurError(Exception):
    """Something the user can mend. The command prints it on one line and leaves with `exit_code`.

    Args:
        what: what was found to be wrong, with the offending value.
        where: the file, tensor, option or recipe key it was found in.
        wanted: what would have been accepted.
        hint: what to try next.
    """

    exit_code = ExitCode.REFUSED
    usual_hint: str | None = None
    """What to try where nothing else is said, for a whole kind of error."""

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        wanted: str | None = None,
        hint: str | None = None,
    ) -> None:
        hint = hint or self.usual_hint
        self.what, self.where, self.wanted, self.hint = what, where, wanted, hint
        line = what if where is None else f"{what} in {where}"
        if wanted is not None:
            line += f"; wanted {wanted}"
        if hint is not None:
            line += f"; try {hint}"
        super().__init__(plain(" ".join(map(_cut, line.split()))))

    def within(self, part: str, names: Mapping[str, str] | None = None) -> Self:
        """The same error, told of a part of what was asked for, such as a stage.

        Args:
            part: its name.
            names: what the user knows nothing of, such as a folder -> what to call it.
        """

        def told(text: object | None) -> str | None:
            for name, instead in (names or {}).items():
                text = None if text is None else str(text).replace(name, instead)
            return None if text is None else str(text)

        return type(self)(
            f"{part}: {told(self.what)}",
            where=told(self.where),
            wanted=told(self.wanted),
            hint=told(self.hint),
        )


class PatternError(SecateurError):
    """A sparsity pattern that cannot be read, or that does not fit a matrix."""


class RecipeError(SecateurError):
    """An option or a recipe key that is unknown, out of range or in contradiction with another."""


class CheckpointError(SecateurError):
    """A model folder that is missing, damaged, or not of a kind that can be read safely."""


class ModelError(SecateurError):
    """An architecture whose blocks cannot be found, run or pruned."""


class DataError(SecateurError):
    """Text, tokens or a data set that cannot be read or is too short."""


class OutputError(SecateurError):
    """A result that cannot be written where it was asked for."""


class NumericalError(SecateurError):
    """A statistic, score, gradient or loss that is not finite."""

    usual_hint = "--dtype float32 if it was another, or another copy of the model"


class LostError(SecateurError):
    """Another process of the same run is gone, or was never found."""


class CheckFailedError(SecateurError):
    """A proof that did not succeed: the files do not have the sparsity that was claimed."""

    exit_code = ExitCode.CHECK_FAILED


@contextmanager
def told_within(part: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """An error that is raised inside is one `within` that part."""
    try:
        yield
    except SecateurError as fault:
        raise fault.within(part, names) from fault


def closest(name: str, options: Iterable[str]) -> str:
    """The options as a phrase, led by the one that `name` most resembles: for `wanted=`.

    >>> closest("wnada", ["magnitude", "wanda"])
    "one of magnitude, wanda (did you mean 'wanda'?)"
    """
    listed = list(options)
    near = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    phrase = "one of " + ", ".join(listed)
    return f"{phrase} (did you mean {near[0]!r}?)" if near else phrase


def some(names: Iterable[str]) -> str:
    """The first of many names, for a message.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def reason(fault: BaseException) -> str:
    """The text of another library's exception on one line of bearable length."""
    said = " ".join(str(fault).split())
    if len(said) > 200:
        said = f"{said[:200]}..."
    return said if " " in said else f"{type(fault).__name__} {said}".strip()


def first_reason(fault: BaseException) -> str:
    """What is said by the exception that caused an error in the first place, on one line."""
    first = fault
    while first.__cause__ is not None:
        first = first.__cause__
    return first.what if isinstance(first, SecateurError) else reason(first)


def unreadable(where: object, fault: OSError, kind: type[SecateurError]) -> SecateurError:
    """What to say of a file or folder that the system does not let this process read."""
    return kind(f"cannot be read ({fault.strerror})", where=where, wanted="a right to read it")


_NO_MEMORY = "can't allocate memory", "MPS backend out of memory"
"""What torch says in a plain RuntimeError: of main memory, and on Apple's accelerator."""


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether Python, torch on an accelerator, or torch's allocator in main memory gave up."""
    return (
        isinstance(fault, MemoryError)
        or type(fault).__name__ == "OutOfMemoryError"
        or (isinstance(fault, RuntimeError) and any(said in str(fault) for said in _NO_MEMORY))
    )


def no_memory(
    fault: BaseException, kind: type[SecateurError] = SecateurError, where: object | None = None
) -> SecateurError:
    """What to say where memory ran out, and what to try."""
    said = f" ({reason(fault).partition('. ')[0]})" if str(fault) else ""
    return kind(
        f"not enough memory{said}",
        where=where,
        hint="--batch-size 1, fewer --samples, a shorter --sequence-length, or a larger machine",
    )


_LONGEST_WORD = 400
"""Characters of a word, such as a path or a value, from which a message shows its two ends."""


def _cut(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[:150]}...{word[-50:]}"


def plain(text: str) -> str:
    """A stranger's text as it may go to a terminal or into a table: nothing in it commands.

    Control characters (escape sequences begin with one), marks that turn the direction of writing
    and halves of surrogate pairs are written out; line ends and tabs stay.

    >>> plain("wanda\x1b[2J")
    'wanda\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        ascii(character)[1:-1]
        if unicodedata.category(character) in _COMMANDING and character not in "\n\t"
        else character
        for character in text
    )


_COMMANDING = ("Cc", "Cf", "Cs")
"""Categories of Unicode: control, format (of direction, invisible), surrogate."""
