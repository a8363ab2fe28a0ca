"""How much a stranger's file may ask for: every bound in one place.

A bound is far above what real models and data need, and far below what fills a machine. Whoever
reads a size out of a file (a configuration, a header, an image) compares it by `at_most` before
anything is built from it.
"""

from __future__ import annotations

from secateur.errors import CheckpointError, SecateurError

MOST_JSON_BYTES = 64_000_000
"""Bytes of an index or a run record: the largest models' take some 10 MB."""

MOST_EXPRESSION_CHARACTERS = 1000
"""Characters of a regular expression: the name of a matrix has about a hundred."""
MOST_EXPRESSION_SECONDS = 2.0
"""Seconds that one regular expression may search the names of all matrices, slow searches alone
counted: an ordinary one takes microseconds for each name."""


def at_most(
    most: float,
    size: float,
    unit: str,
    *,
    where: object,
    fault: type[SecateurError] = CheckpointError,
) -> None:
    """Refuse what is larger than its bound.

    Args:
        most: the bound, one of this module's.
        size: what the file asks for.
        unit: what is counted, such as "bytes of JSON".
        where: the file.
        fault: of which kind the error is.

    Raises:
        SecateurError: `size` is above `most`; it is a `fault`.

    >>> at_most(MOST_JSON_BYTES, 10**9, "bytes of JSON", where="config.json")
    CheckpointError: 1000000000 bytes of JSON in config.json; wanted at most 64000000
    """
    if size > most:
        raise fault(f"{size:.12g} {unit}", where=where, wanted=f"at most {most:.12g}")
