"""A multiple-choice task out of any text: which of four continuations is the real one?

    question   CONTEXT characters of a document, cut between words
    choices    the CHOICE characters that follow it, and three such pieces from elsewhere in it

It needs no network, fits whatever a model was trained on, and is measured like the published tasks.
The same text, count and seed give the same questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.errors import DataError

NAME = "continuation"
QUESTIONS = 1000
"""Questions if no other number is asked: an accuracy has a standard error of 1.5 points."""
CONTEXT = 160
"""Characters that are read before the choice."""
CHOICE = 40
"""Characters of a continuation, to the end of a word."""
CHOICES = 4
"""Continuations to choose from: chance scores a quarter."""
DRAWN_BY = 0
"""Seed of the questions, if no other is given."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        context: what is read.
        choices: four continuations; each begins with the space that follows the context.
        answer: the number of the real one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


def make_questions(
    texts: Sequence[str], count: int = QUESTIONS, seed: int = DRAWN_BY
) -> tuple[Question, ...]:
    """Questions in random order, spread over the documents by their length.

    Args:
        texts: documents; those too short for a question and three other pieces are left out.
        count: how many.
        seed: of the random choice.

    Raises:
        DataError: no document is long enough.
    """
    chance = random.Random(seed)
    long_enough = [text for text in texts if len(text) > 4 * (CONTEXT + CHOICE)]
    if not long_enough:
        raise DataError(
            f"no document has more than {4 * (CONTEXT + CHOICE)} characters to ask about",
            hint="another text",
        )
    lengths = [len(text) for text in long_enough]
    return tuple(_question(chance.choices(long_enough, lengths)[0], chance) for _ in range(count))


def _question(text: str, chance: random.Random) -> Question:
    """A question about a random place in a document."""
    start = _between_words(text, chance.randrange(CONTEXT, len(text) - 2 * CHOICE))
    real = _piece(text, start)
    others: list[str] = []
    while len(others) < CHOICES - 1:
        elsewhere = _between_words(text, chance.randrange(len(text) - 2 * CHOICE))
        if abs(elsewhere - start) > CHOICE:
            others.append(_piece(text, elsewhere))
    answer = chance.randrange(CHOICES)
    choices = (*others[:answer], real, *others[answer:])
    return Question(text[max(0, start - CONTEXT) : start], choices, answer)


def _piece(text: str, start: int) -> str:
    """CHOICE characters from `start`, to the end of a word; its first space is a plain one."""
    return " " + text[start + 1 : _between_words(text, start + CHOICE)]


def _between_words(text: str, position: int) -> int:
    """The first white space at or after a position, or the end."""
    while position < len(text) and not text[position].isspace():
        position += 1
    return position
