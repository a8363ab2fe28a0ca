"""How much a stranger's file may ask for: every bound in one place.

A bound is far above what real models and data need, and far below what fills a machine. Whoever
reads a size out of a file (a configuration, a header, an image) compares it by `at_most` before
anything is built from it.
"""

from __future__ import annotations

from secateur.errors import CheckpointError, SecateurError

MOST_JSON_BYTES = 64_000_000
"""Bytes of an index or a run record: the largest models' take some 10 MB."""

MOST_CONFIG_BYTES = 8_000_000
"""Bytes of a config.json: one with 20,000 labels takes 2 MB."""
MOST_CONFIG_DEPTH = 16
"""Levels of a config.json, one within the other: real ones have up to 6."""
LEAST_LAYERS = 128
"""Layers that a config.json may count whatever its files hold (a part of a model that is not in
them, such as an image encoder); no more than the files have tensors otherwise."""
MOST_PARTS = 1_000_000
"""Labels, experts or heads in a config.json: the largest have some 20,000 classes."""
MOST_CALLS_PER_TENSOR = 1_000
"""Calls of torch while a model is built, per tensor of its files: real ones take about 20."""
MOST_BUFFER_BYTES = 2**30
"""Bytes of the tables that a model computes for itself, such as rotary frequencies: real ones take
some megabytes."""


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
