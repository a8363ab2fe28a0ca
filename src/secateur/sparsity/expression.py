"""Regular expressions that somebody wrote, searched for in the names of matrices.

A recipe or a run.json may be a stranger's, and an expression such as `(.*)*x` takes time without
end. They are bounded here, in length and in time, and nowhere else are any searched for.
"""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter
from typing import Any

import regex

from secateur.errors import PatternError
from secateur.machine.limits import MOST_EXPRESSION_CHARACTERS, MOST_EXPRESSION_SECONDS, at_most

_SLOW = 0.001
"""Seconds from which on a search counts: in a name of a hundred characters it takes some 1e-6."""


class _Expression:
    """An expression, and the seconds that its slow searches took in this process."""

    def __init__(self, text: str) -> None:
        self.compiled: Any = regex.compile(text)
        self.spent = 0.0


_read = lru_cache(maxsize=4096)(_Expression)


def check_expression(text: str) -> None:
    """Raise `PatternError` for what is no regular expression, or a very long one."""
    if not isinstance(text, str):
        raise PatternError(f"{text!r} is no regular expression", wanted="text")
    unit = "characters in a regular expression"
    at_most(
        MOST_EXPRESSION_CHARACTERS, len(text), unit, where=f"{text[:40]}...", fault=PatternError
    )
    try:
        _read(text)
    except (regex.error, RecursionError, OverflowError) as fault:
        raise PatternError(
            f"{text[:80]!r} is no regular expression ({fault})",
            wanted="one that is found in the names of matrices, such as mlp or experts",
        ) from fault


def is_found(text: str, name: str) -> bool:
    """Whether an expression, which was checked, is found anywhere in a name.

    Raises:
        PatternError: it takes too long.
    """
    expression = _read(text)
    begun, too_long = perf_counter(), False
    try:
        match = expression.compiled.search(name, timeout=MOST_EXPRESSION_SECONDS)
    except TimeoutError:
        match, too_long = None, True
    if (seconds := perf_counter() - begun) > _SLOW:
        expression.spent += seconds
    if too_long or expression.spent > MOST_EXPRESSION_SECONDS:
        raise PatternError(
            f"the regular expression {text[:80]!r} takes too long",
            where=name,
            wanted=f"at most {MOST_EXPRESSION_SECONDS} s for all names",
            hint="one without a repetition inside a repetition",
        )
    return match is not None
