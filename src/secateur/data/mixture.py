"""Calibration on several texts at once: a part of the sequences from each, in an even order.

    n_p = samples * share_p / sum of shares     by largest remainder, one at least
    place of sequence i of part p: (i + u) / n_p, u at random in [0, 1)

Every part is drawn with the run's own seed, from its own source alone, so that it stays the same
whatever stands beside it: leaving one source out changes nothing else. Text is drawn by `excerpts`
(excerpts.py), also that which alone is drawn as the papers do it.

The order: sequence i of a part lies in the i-th of n_p equal stretches of the batch, anywhere in
it. So any beginning and any end of the batch has all parts, nearly by their shares: the regional
optimiser judges by the last sequences, an allocation is measured on them, a few of the first are
observed. And because the place within a stretch is random, no part falls together with a stratum
(the sequences n modulo the batch size, of which every step takes one), or with the share of one
process (n modulo their number), as it would if the parts took strict turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from secateur.data.builtin import BUILTIN
from secateur.data.calibration import Draw
from secateur.data.hub import HUB_TEXTS
from secateur.data.selfwritten import SELF
from secateur.data.texts import has_columns, locate_text, without_columns
from secateur.data.token_files import is_token_file
from secateur.data.tokens import Protocol, Provenance, TokenBatch, make_batch
from secateur.errors import DataError
from secateur.machine.paths import as_path

Read = Callable[[str, Draw], TokenBatch]
"""(source, what to draw of it) -> its sequences."""


def read_mixture(
    sources: Sequence[str], shares: Sequence[float] | None, draw: Draw, read: Read
) -> TokenBatch:
    """Sequences of several sources, int64 [draw.samples, draw.sequence_length], in an even order.

    Args:
        sources: at least two, all different.
        shares: of the samples, one for each source; None: all give as many.
        draw: of all of them together; a column is read in those that have columns.
        read: reads one source.

    Raises:
        DataError: a source cannot be read or has too few sequences, two are the same file, or a
            column is asked for and none of them has any.
    """
    for source in sources:  # before the first of them is read, or written
        if source not in (*HUB_TEXTS, BUILTIN, SELF):
            locate_text(source)
    columns = [source != SELF and not is_token_file(source) and has_columns(source)
               for source in sources]  # fmt: skip
    if draw.column is not None and not any(columns):
        raise without_columns(draw.column, " + ".join(sources))
    parts: list[TokenBatch] = []
    counts = counts_of(draw.samples, shares or [1.0] * len(sources))
    for source, count, column in zip(sources, counts, columns, strict=True):
        asked = replace(
            draw,
            samples=count,
            sampling="excerpts",
            column=draw.column if column else None,
        )
        part = read(source, asked)
        _check_size(part, asked)
        _check_another(part.protocol, [other.protocol for other in parts])
        parts.append(part)
    rows = torch.cat([part.input_ids for part in parts])  # [samples, length], part by part
    mixed = torch.empty_like(rows)
    mixed[torch.tensor(order_of(counts, draw.seed)).argsort(stable=True)] = rows
    origin = {"shares": ":".join(f"{share:g}" for share in shares or [1.0] * len(sources))}
    provenance = Provenance(" + ".join(sources), "mixture", origin, "mixed", seed=draw.seed)
    notices = tuple(dict.fromkeys(line for part in parts for line in part.notices))
    batch = make_batch(mixed, provenance, vocabulary=None, notices=notices)
    protocols = tuple(part.protocol for part in parts)
    texts = [protocol for protocol in protocols if protocol.tokenizer is not None]
    known = ("tokenizer", "bos", "prefix") if texts else ()
    update = {"parts": protocols, **{name: getattr(texts[0], name) for name in known}}
    return replace(batch, protocol=batch.protocol.model_copy(update=update))


def counts_of(samples: int, shares: Sequence[float]) -> list[int]:
    """How many of the samples each share gives: the largest remainder, one at least.

    Args:
        samples: as many as there are shares, at least.
        shares: positive.

    >>> counts_of(8, [2, 1, 1]), counts_of(8, [1, 1, 1]), counts_of(4, [100, 1])
    ([4, 2, 2], [3, 3, 2], [3, 1])
    """
    exact = [Fraction(repr(float(share))) for share in shares]
    quotas = [samples * share / sum(exact) for share in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda part: counts[part] - quotas[part])
    for part in by_remainder[: samples - sum(counts)]:
        counts[part] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def order_of(counts: Sequence[int], seed: int) -> list[int]:
    """The part that each sequence of the batch is of, as at the head of this module."""
    chance = random.Random(seed)
    places = [
        ((index + chance.random()) / count, part)
        for part, count in enumerate(counts)
        for index in range(count)
    ]
    return [part for _, part in sorted(places)]


def by_source(batch: TokenBatch) -> list[tuple[Protocol, Tensor]]:
    """The sources of a batch with the sequences of each; a batch of one source is its own.

    What the dense model wrote beside a mixture stands before it and is of none of them.
    """
    whole = batch.protocol
    if not whole.parts or whole.seed is None:
        return [(whole, batch.input_ids)]
    counts = [part.sequences for part in whole.parts]
    numbers = torch.tensor(order_of(counts, whole.seed))  # [sequences of the mixture]
    mixed = batch.input_ids[-len(numbers) :]
    return [(part, mixed[numbers == number]) for number, part in enumerate(whole.parts)]


def _check_size(part: TokenBatch, asked: Draw) -> None:
    """Prove that a source gave what was asked for: given tokens can be fewer, or of other length.

    Raises:
        DataError: it did not.
    """
    count, length = part.input_ids.shape
    held = int(part.protocol.origin.get("sequence_length", length))
    if count < asked.samples or held != asked.sequence_length:
        raise DataError(
            f"{part.protocol.origin.get('sequences', count)} sequences of {held} tokens",
            where=part.protocol.source,
            wanted=f"{asked.samples} of {asked.sequence_length} tokens, its part of the mixture",
            hint="another share, --samples or --sequence-length",
        )


def _check_another(part: Protocol, others: Sequence[Protocol]) -> None:
    """Prove that a source is none of the others under another name.

    Raises:
        DataError: it is.
    """
    for other in others:
        if (path := path_of(part)) is not None and path == path_of(other):
            raise DataError(
                f"{other.source} and {part.source} are the same text",
                wanted="every calibration text once",
                hint="--shares, to give one of them more weight",
            )


def path_of(text: Protocol) -> Path | None:
    """The file or folder that a text was read from, links followed; None if it has none."""
    path = text.origin.get("path")
    return None if path is None else as_path(path, fault=DataError).resolve()
