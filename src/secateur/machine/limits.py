"""How much a stranger's file may ask for: every bound in one place.

A bound is far above what real models and data need, and far below what fills a machine. Whoever
reads a size out of a file (a configuration, a header, an image) compares it by `at_most` before
anything is built from it.
"""

from __future__ import annotations

from secateur.errors import CheckpointError, SecateurError

MOST_JSON_BYTES = 64_000_000
"""Bytes of an index or a run record: the largest models' take some 10 MB."""
MOST_TEXT_BYTES = 2_000_000_000
"""Bytes of text that are read of one source: a whole shard of C4 unpacks to 0.8 GB."""
MOST_RECORDS = 20_000_000
"""Records (lines, rows) that are read of one source: a shard of C4 has 0.4 million."""
MOST_RECORD_BYTES = 64_000_000
"""Bytes of one record of a data file: the longest books have some 10 MB."""
MOST_IMAGE_PIXELS = 64_000_000
"""Pixels of an image, in its file or once it is resized: cameras give up to 50 million."""
MOST_IMAGE_EDGE = 4096
"""Pixels of an edge that an image processor may ask for: classifiers read 224 to some 1000."""

MOST_RECIPE_BYTES = 1_000_000
"""Bytes of a recipe file: one of some hundred lines is long."""
MOST_RECIPE_DEPTH = 20
"""Lists and mappings within each other in a recipe: real ones have three."""
MOST_EXPRESSION_CHARACTERS = 1000
"""Characters of a regular expression: the name of a matrix has about a hundred."""
MOST_EXPRESSION_SECONDS = 2.0
"""Seconds that one regular expression may search the names of all matrices, slow searches alone
counted: an ordinary one takes microseconds for each name."""
MOST_SEQUENCES = 1_000_000
"""Sequences or windows of one run: papers take 128, and each costs its forward passes."""
MOST_LENGTH = 2**24
"""Tokens of a sequence: the longest contexts that models are made for are ten million."""
MOST_TOKENS = 10**10
"""Tokens that a run draws, eight bytes each in main memory: 80 GB."""
MOST_AT_ONCE = 2**20
"""Sequences, windows or images that run together: a batch larger than a run's is no other batch."""
MOST_RANK = 2**16
"""Rank of an adapter: the widest layers have about so many inputs."""
MOST_REPEATS = 10**9
"""Steps, rounds, repeats, or questions asked: more would take years."""
MOST_BLOCKS = 10**6
"""A block's number: models have some hundreds."""
MOST_WIDTH = 2**22
"""Channels of a layer: the widest have some 10**5."""

MOST_TENSORS = 1_000_000
"""Tensors, or keys, of one GGUF file: the largest models have some 2,000."""
MOST_HEADER_BYTES = 100_000_000
"""Bytes of a safetensors header: the library reads none that is longer."""
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
        asked = f"{size:.12g}" if size < 1e300 else "more than 1e+300"
        raise fault(f"{asked} {unit}", where=where, wanted=f"at most {most:.12g}")
