"""Whether a text that steers a model is, in part, the text that the model is measured on.

    runs     of 32 tokens in a row, side by side, that a sequence of the calibration is made of
    share    how many of those of a sequence occur anywhere in a window that is measured

32 tokens of a text hardly occur in another by chance, and whatever 63 tokens or more the two have
in common hold one of the runs. Told of is a text of which some sequences are half shared or more,
or which is shared in small pieces all over. What is less is a line that both quote, the header of a
program, the system's words in a chat. A licence longer than a sequence is told of: it is measured.

Where both are the same file, or one file lies in both folders, other windows of it are no excuse:
they have its subject, its names and its author. Splits of one folder have no file in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.data.folders import text_files
from secateur.data.hub import Split
from secateur.data.mixture import by_source, path_of
from secateur.data.tokens import Protocol, TokenBatch
from secateur.errors import SecateurError

LONG_RUN = 32
"""Tokens in a row that are compared: a long sentence."""
PART_OF_WINDOW = 4
"""A run is at most one part in so many of a window, of which those at its end are not seen."""
SHORTEST_RUN = 8
"""Tokens of a run at least; where sequences are shorter nothing is compared."""
DIFFERENT = 4
"""A run of so many tokens as this many at least are of a different kind: else it is a ruler, a
table's border, or blank lines."""
LEAST_SEQUENCES = 0.01
"""Share of the sequences that are half shared, at which a text is told of: one book of fifteen of
which a third is measured gives two in a hundred; books and articles of which none is the other's
gave none."""
LEAST_TOKENS = 0.1
"""Share of all tokens at which a text is told of, in however small pieces they are."""

Hashes = NDArray[np.uint64]
SharedParts = NDArray[np.float64]


def overlaps(
    calibration: TokenBatch, heldout: Sequence[TokenBatch], use: str = "calibration"
) -> tuple[str, ...]:
    """A line for every text that is used to steer the model and measured, too.

    Args:
        calibration: what steers the model; of a mixture every source is looked at.
        heldout: what is measured.
        use: what the text is used for, as the line says it.
    """
    return tuple(
        line
        for part, tokens in by_source(calibration)
        for measured in heldout
        if (line := _told(part, tokens.numpy(), measured, use)) is not None
    )


def _told(part: Protocol, tokens: NDArray[np.int64], measured: TokenBatch, use: str) -> str | None:
    beginning = len(part.prefix or ()) if part.bos == "window" else 0
    shares = shared_tokens(tokens[:, beginning:], measured.input_ids.numpy())  # [sequences]
    half, share = int((shares >= 0.5).sum()), float(shares.mean())
    files = _files_in_common(part, measured.protocol)
    if half < LEAST_SEQUENCES * len(shares) and share < LEAST_TOKENS and not files:
        return None
    facts = []
    if files:
        one = f"{files[0].name} is" if len(files) == 1 else f"{len(files)} files are"
        facts.append(f"{one} read for both")
    if share:
        tokens_shared = f"{share:.1%} of its tokens are in the measured windows"
        facts.append(f"{half} of {len(shares)} sequences half or more, {tokens_shared}")
    return (
        f"the {use} text {part.source} and the held-out text {measured.protocol.source} have text"
        f" in common ({', '.join(facts)}): what is measured flatters; hold another text back"
    )


def shared_tokens(calibration: NDArray[np.int64], measured: NDArray[np.int64]) -> SharedParts:
    """The share of every sequence that occurs in the measured windows, float64 [sequences].

    Args:
        calibration: [sequences, length].
        measured: [windows, length].
    """
    length = min(calibration.shape[1], measured.shape[1])
    if length < SHORTEST_RUN:
        return np.zeros(len(calibration))
    run = max(SHORTEST_RUN, min(LONG_RUN, length // PART_OF_WINDOW))
    last = calibration.shape[1] - run
    starts = sorted({*range(0, last + 1, run), last})
    runs = np.stack([calibration[:, start : start + run] for start in starts], axis=1)
    ordered = np.sort(runs, axis=2)  # [sequences, runs, run]
    kinds = 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(axis=2)  # [sequences, runs]
    seen = np.isin(_hashes(runs.reshape(-1, run), run), _hashes(measured, run))
    shares: SharedParts = (seen.reshape(kinds.shape) & (kinds >= DIFFERENT)).mean(axis=1)
    return shares


def _hashes(tokens: NDArray[np.int64], run: int) -> Hashes:
    """Of every `run` tokens in a row, uint64 [rows, length - run + 1]: a polynomial modulo 2**64.

    Before, every token is turned into 64 bits that look random, for a polynomial of small numbers
    would have many hashes in common.
    """
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((31, 0x9E3779B97F4A7C15), (29, 0xBF58476D1CE4E5B9)):
        mixed *= np.uint64(factor)
        mixed ^= mixed >> np.uint64(shift)
    places = tokens.shape[1] - run + 1
    total = np.zeros((len(tokens), places), dtype=np.uint64)
    for offset in range(run):
        total *= np.uint64(0x94D049BB133111EB)
        total += mixed[:, offset : offset + places]
    return total


def _files_in_common(one: Protocol, other: Protocol) -> list[Path]:
    """The files that both texts are read from."""
    paths = path_of(one), path_of(other)
    if paths[0] is None or paths[1] is None:
        return []
    if not (paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])):
        return []
    return sorted(set(_files(paths[0], "train")) & set(_files(paths[1], "test")))


def _files(path: Path, split: Split) -> Iterator[Path]:
    """The files of a text by their real paths; none if they can no longer be listed."""
    if not path.is_dir():
        yield path
        return
    try:
        yield from (file.resolve() for file in text_files(path, split).paths)
    except SecateurError:
        return
