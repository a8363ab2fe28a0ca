"""Excerpts of long and short documents: the text that one source of a mixture is cut from.

One book among a thousand notes: windows drawn from all of their text are nearly all of the book,
and with one window for each document nearly all of the notes, or of the book where those are
shorter than a window. So the text, in its own order, is divided into stretches of equal length,
and two ways to draw take turns:

    by document   the next document, in random order: a stretch at random of those that it reaches
    by length     a stretch at random of all of them

A stretch is drawn once, so that little text is used up whole, and it keeps the neighbours of a
document, so that a data set of lines still gives whole articles. As many stretches are drawn as
windows are wanted, each `STRETCH_WINDOWS` windows long where there is text enough; one window of
each is used, so that a window seldom has a seam.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

USUAL_CHARACTERS = 4
"""Characters of English, or of a program, in a token, about."""
STRETCH_WINDOWS = 4
"""Windows in a stretch, about: one in so many has a seam between two stretches."""
LARGEST_PART = 10
"""A document counts as one part in so many of the most text that is looked at, however long it is:
no book stands in the way of the next document."""


def choose_documents(texts: Sequence[str], most: int, chance: random.Random) -> list[str]:
    """The documents that are not blank, in their order; of many as many at random as are needed.

    Args:
        texts: all documents; those of a data set stay on disk until they are looked at.
        most: characters that they have together, about; see `LARGEST_PART`.
        chance: decides which.
    """
    order = list(range(len(texts)))
    chance.shuffle(order)
    chosen: dict[int, str] = {}
    total = 0
    for index in order:
        if (text := texts[index]).strip():
            chosen[index] = text
            total += min(len(text), most // LARGEST_PART)
        if total > most:
            break
    return [chosen[index] for index in sorted(chosen)]


def draw_excerpts(
    documents: Sequence[str], joiner: str, longest: int, least: int, chance: random.Random
) -> Iterator[str]:
    """Every stretch of the joined documents once, in an order as at the head of this module.

    Args:
        documents: none of them blank.
        joiner: stands between two of them.
        longest: characters of a stretch at most.
        least: stretches, if need be by making them shorter.
        chance: decides the order.
    """
    text = joiner.join(documents)
    length = max(1, min(longest, len(text) // least))
    ends = [_end(text, end - length // 2, end) for end in range(length, len(text), length)]
    ends.append(len(text))
    lengths = (len(document) + len(joiner) for document in documents)
    begins = list(accumulate(lengths, initial=0))[:-1]
    every, turns = list(range(len(ends))), list(range(len(documents)))
    chance.shuffle(every)
    chance.shuffle(turns)
    left = set(every)
    by_length = iter(every)
    by_document = (
        chance.randint(
            bisect_right(ends, begins[turn]),
            bisect_right(ends, begins[turn] + len(documents[turn]) - 1),
        )
        for turn in turns
    )
    while left:
        for ways in (by_document, by_length):
            number = next((number for number in ways if number in left), None)
            if number is not None:
                left.remove(number)
                yield text[ends[number - 1] if number else 0 : ends[number]]


def spread_evenly(windows: int, wanted: int, chance: random.Random) -> list[int]:
    """The numbers of `wanted` windows of so many: one at random of each of as many equal parts."""
    bounds = [part * windows // wanted for part in range(wanted + 1)]
    chosen = [chance.randrange(*ends) for ends in pairwise(bounds)]
    chance.shuffle(chosen)
    return chosen


def _end(text: str, first: int, last: int) -> int:
    """Where to cut between two places: after the last line that ends there, or else word."""
    for sign in ("\n", " "):
        if (place := text.rfind(sign, first, last)) >= 0:
            return place + 1
    return last
