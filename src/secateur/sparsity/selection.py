"""Which matrix gets which pattern: by its name, and by the block that it is in.

    pattern      for every matrix, unless `patterns` has another for it
    patterns     expression -> pattern; the first expression that is found in the name decides
    include      only matrices in whose name one of these is found
    exclude      no matrix in whose name one of these is found
    blocks       only in these blocks, counted from 0: "4-27", "0,3,8-" ("8-" is from 8 to the last)
    dense_first  not in so many of the first blocks

Expressions are regular expressions as Python writes them, searched for anywhere in the full name,
such as "model.layers.3.self_attn.q_proj.weight" or "model.layers.3.mlp.experts.17.down_proj".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from secateur.errors import PatternError
from secateur.sparsity.expression import check_expression, is_found
from secateur.sparsity.pattern import Pattern, parse_pattern

SELECTION_KEYS = ("include", "exclude", "blocks", "dense_first", "patterns")
"""Keys of a recipe that say, beside its pattern, which matrices are pruned and to what."""

DENSE_FIRST, NOT_IN_BLOCKS, NOT_INCLUDED, EXCLUDED = REASONS_DENSE = (
    "dense_first", "not in blocks", "not included", "excluded",
)  # fmt: skip
"""Why a selection gives a matrix no pattern."""


@dataclass(frozen=True)
class Selection:
    """What is pruned to which pattern. Make it with `read_selection`, or of a pattern alone.

    Attributes:
        pattern, patterns, include, exclude, dense_first: as above.
        blocks: (first, last) of each range, both included; last None is open; None: all blocks.
        before: what an earlier stage pruned; its patterns stay where this one has none.
    """

    pattern: Pattern
    patterns: tuple[tuple[str, Pattern], ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    blocks: tuple[tuple[int, int | None], ...] | None = None
    dense_first: int = 0
    before: Selection | None = None

    @property
    def every_pattern(self) -> tuple[Pattern, ...]:
        """All patterns that a matrix may get."""
        return (self.pattern, *(pattern for _, pattern in self.patterns))

    def pattern_of(self, block: int, name: str) -> Pattern | None:
        """The pattern of a matrix, by its block's number and full name; None leaves it as it is.

        Raises:
            PatternError: an expression takes too long.
        """
        if self._reason_here(block, name) is not None:
            return None if self.before is None else self.before.pattern_of(block, name)
        patterns = (pattern for expression, pattern in self.patterns if is_found(expression, name))
        return next(patterns, self.pattern)

    def reason_dense(self, block: int, name: str) -> str | None:
        """Why a matrix gets no pattern, by the setting that leaves it out; None if it gets one."""
        if self.before is not None and self.before.reason_dense(block, name) is None:
            return None
        return self._reason_here(block, name)

    def _reason_here(self, block: int, name: str) -> str | None:
        """The same without what was before."""
        if block < self.dense_first:
            return DENSE_FIRST
        if self.blocks is not None and not any(
            first <= block and (last is None or block <= last) for first, last in self.blocks
        ):
            return NOT_IN_BLOCKS
        if self.include and not any(is_found(expression, name) for expression in self.include):
            return NOT_INCLUDED
        excluded = any(is_found(expression, name) for expression in self.exclude)
        return EXCLUDED if excluded else None

    def idle(self, names: Iterable[str]) -> tuple[str, ...]:
        """The expressions that are found in none of the names."""
        known = list(names)
        expressions = (
            *self.include,
            *self.exclude,
            *(expression for expression, _ in self.patterns),
        )
        return tuple(e for e in expressions if not any(is_found(e, name) for name in known))

    def __str__(self) -> str:
        plain = replace(self, before=None) == Selection(self.pattern)
        text = f"{self.pattern}" if plain else f"{self.pattern}, by matrix"
        return text if self.before is None else f"{self.before}; then {text}"


def read_selection(values: Mapping[str, Any]) -> Selection:
    """Read a selection out of a recipe, under the keys above; only `pattern` must be there.

    Raises:
        PatternError: a pattern, an expression or a range of blocks cannot be read.
    """
    blocks = values.get("blocks")
    selection = Selection(
        parse_pattern(values["pattern"]),
        tuple((e, parse_pattern(pattern)) for e, pattern in values.get("patterns", {}).items()),
        tuple(values.get("include", ())),
        tuple(values.get("exclude", ())),
        None if blocks is None else tuple(_range(part) for part in blocks.split(",")),
        values.get("dense_first", 0),
    )
    for expression in (*selection.include, *selection.exclude, *dict(selection.patterns)):
        check_expression(expression)
    return selection


def _range(text: str) -> tuple[int, int | None]:
    """ "4-27" -> (4, 27), "4-" -> (4, None), "4" -> (4, 4)."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*(-\s*(\d{1,6})?)?\s*", text)
    if match is None or (match[3] and int(match[3]) < int(match[1])):
        raise PatternError(
            f"blocks {text!r} cannot be read",
            wanted="numbers and ranges of them, counted from 0, such as 4-27 or 0,3,8-",
        )
    first = int(match[1])
    return first, (first if match[2] is None else int(match[3]) if match[3] else None)
