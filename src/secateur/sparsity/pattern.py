"""Sparsity patterns and how people write them.

    "50%", "0.5"   unstructured: that share of the weights is zero
    "2:4", "4:8"   N:M: of every M consecutive weights along the input dimension, N are KEPT
    "blocks-6"     so many blocks of the model are REMOVED, also as a share: "blocks-20%"
    "ffn-20%"      so many channels of every feed-forward layer are REMOVED, or of "heads" groups of
                   a key-value head with its queries, or of "experts"
    "dense"        nothing is pruned: what is only quantised

Two conventions for N exist in the field (kept or pruned); they agree only at one half. Ours is
"N of M are kept", which is also what NVIDIA's 2:4 hardware documentation means.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from secateur.errors import PatternError

IN_FULL = {
    "blocks": "blocks",
    "ffn": "feed-forward channels",
    "heads": "groups of attention heads",
    "experts": "experts",
}
"""What structures a pattern may remove, as it names them -> what they are called elsewhere."""
UNITS = tuple(IN_FULL)
"""The names in patterns."""
NOTHING_PRUNED = "dense"
"""The pattern that prunes nothing, as it is written."""
_STRUCTURES = re.compile(rf"({'|'.join(UNITS)})-" + r"([0-9]{1,6}|[0-9]{1,3}(?:\.[0-9]{1,20})?%)")
_WANTED = (
    "a ratio such as 50% or 0.5, N:M (N of every M weights kept) such as 2:4, or blocks-2, ffn-20%,"
    " heads-1, experts-25% (so many removed)"
)


@dataclass(frozen=True)
class Unstructured:
    """A share of all weights is zero, wherever they stand.

    Attributes:
        ratio: the share that is pruned, between 0 and 1, both excluded.
    """

    ratio: float

    @property
    def sparsity(self) -> float:
        """The share of zeros that the pattern asks for."""
        return self.ratio

    def pruned_of(self, count: int) -> int:
        """How many of `count` weights to prune: the ratio rounded down, as the papers do."""
        return math.floor(self.ratio * count + 1e-6)

    def fits(self, in_features: int) -> bool:
        """Whether the ratio prunes a weight of every row, and leaves one."""
        return 0 < self.pruned_of(in_features) < in_features

    def check_fits(self, in_features: int, where: str) -> None:
        """Raise `PatternError` unless the pattern fits a row of so many weights."""
        if not self.fits(in_features):
            pruned = self.pruned_of(in_features)
            nearest = 1 / in_features if pruned == 0 else 1 - 1 / in_features
            raise PatternError(
                f"{self} prunes {pruned} of {in_features} weights of every row",
                where=where,
                wanted="a ratio that leaves some weights and prunes some",
                hint=_without(where, Unstructured(nearest) if in_features > 1 else None),
            )

    def __str__(self) -> str:
        percent = f"{self.ratio * 100:.10g}"
        if "e" not in percent and float(Decimal(percent) / 100) == self.ratio:
            return f"{percent}%"
        return format(Decimal(repr(self.ratio)), "f")  # every digit, and no exponent


@dataclass(frozen=True)
class NofM:
    """Of every `m` consecutive weights along the input dimension, `n` are kept.

    Attributes:
        n: weights kept in each group, 1 to m - 1.
        m: size of a group.
    """

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """The share of zeros that the pattern asks for."""
        return 1 - self.n / self.m

    def fits(self, in_features: int) -> bool:
        """Whether the groups fill a row exactly."""
        return in_features > 0 and in_features % self.m == 0

    def check_fits(self, in_features: int, where: str) -> None:
        """Raise `PatternError` unless the pattern fits a row of so many weights."""
        if not self.fits(in_features):
            raise PatternError(
                f"groups of {self.m} do not divide the {in_features} inputs",
                where=where,
                wanted=f"a pattern N:M whose M divides {in_features}",
                hint=_without(where, self._nearest(in_features)),
            )

    def _nearest(self, in_features: int) -> Pattern | None:
        """The pattern of the same share that fits and whose groups are most alike in size."""
        alike = [
            NofM(self.n * m // self.m, m)
            for m in range(2, min(in_features, 2 * self.m) + 1)
            if in_features % m == 0 and self.n * m % self.m == 0
        ]
        if alike:
            return min(alike, key=lambda pattern: abs(pattern.m - self.m))
        share = Unstructured(self.sparsity)
        return share if share.fits(in_features) else None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Dense:
    """Every weight is kept: what is only quantised, or mended where structures were removed."""

    sparsity: ClassVar[float] = 0.0

    def pruned_of(self, count: int) -> int:
        """None of `count` weights."""
        return 0

    def fits(self, in_features: int) -> bool:
        """It fits every row."""
        return True

    def check_fits(self, in_features: int, where: str) -> None:
        """It fits every row."""

    def __str__(self) -> str:
        return NOTHING_PRUNED


@dataclass(frozen=True)
class Structures(Dense):
    """Whole structures of a model are removed, and every weight of the others is kept.

    Attributes:
        unit: what is removed, one of `UNITS`: of the model, or in every block of it.
        count: how many; None where a share is given.
        share: which share of them, between 0 and 1, both excluded; rounded down.
    """

    unit: str
    count: int | None = None
    share: float | None = None

    def removed_of(self, total: int, multiple: int = 1) -> int:
        """How many of `total` structures are removed.

        Args:
            total: how many there are.
            multiple: of a share, so many are left that they are the nearest multiple of this, if
                that leaves something to remove.

        Raises:
            PatternError: it would be none or all of them.
        """
        if self.count is not None:
            removed = self.count
        else:
            removed = math.floor((self.share or 0.0) * total + 1e-6)
            left = multiple * round((total - removed) / multiple)
            removed = total - left if 0 < left < total else removed
        if 0 < removed < total:
            return removed
        raise PatternError(
            f"{self} removes {removed} of {total} {IN_FULL[self.unit]}",
            wanted=f"a number from 1 to {total - 1}" if total > 1 else "a model with more of them",
            hint=f"{self.unit}-1" if total > 1 else None,
        )

    def __str__(self) -> str:
        if self.count is not None:
            return f"{self.unit}-{self.count}"
        percent = (Decimal(repr(self.share)) * 100).normalize()
        return f"{self.unit}-{percent:f}%"


Pattern = Unstructured | NofM | Dense | Structures


def _without(matrix: str, nearest: Pattern | None) -> str:
    """What to try where a pattern does not fit a matrix: one that does, or to leave it out.

    >>> _without("model.layers.3.mlp.down_proj.weight", NofM(1, 2))
    "1:2, or --exclude 'mlp.down_proj'"
    """
    inside = re.sub(r"^.*\.\d+\.(?=[^.]*[a-z])", "", matrix.removesuffix(".weight"))
    leave_out = f"--exclude '{inside}'"
    return leave_out if nearest is None else f"{nearest}, or {leave_out}"


def parse_pattern(text: str | float | Pattern) -> Pattern:
    """Read a pattern as a person writes it: "2:4", "50%", "0.5", 0.5, "blocks-2", "dense".

    Raises:
        PatternError: it is none of these, or asks for nothing or everything to be pruned.
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str | int | float):  # a list of lists may have no end
        raise PatternError(f"a pattern cannot be a {type(text).__name__}", wanted=_WANTED)
    written = str(text).strip()
    named = repr(written if len(written) <= 40 else f"{written[:37]}...")
    if written == NOTHING_PRUNED:
        return Dense()
    if match := re.fullmatch(r"([0-9]{1,6})\s*:\s*([0-9]{1,6})", written):
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise PatternError(
                f"pattern {named} keeps {n} of {m} weights",
                wanted="N:M with 0 < N < M, N being the number kept",
                hint="2:4",
            )
        return NofM(n, m)
    if match := _STRUCTURES.fullmatch(written):
        unit, amount = match.groups()
        share = float(Decimal(amount.removesuffix("%")) / 100)
        if share == 0 or (amount.endswith("%") and share >= 1):
            raise PatternError(
                f"pattern {named} removes {'nothing' if share == 0 else 'everything'}",
                wanted=f"some {IN_FULL[unit]}, and not all of them",
                hint=f"{unit}-1",
            )
        if amount.endswith("%"):
            return Structures(unit, share=share)
        return Structures(unit, count=int(amount))
    if match := re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(%?)", written):
        # by decimals, so that 33.3% and 0.333 are the same number
        ratio = float(Decimal(match[1]) / (100 if match[2] else 1))
        if not 0 < ratio < 1:
            raise PatternError(
                f"pattern {named} prunes {ratio * 100:g} % of the weights",
                wanted="more than 0 % and less than 100 %",
                hint="50%" if ratio != 50 else "50% (with the percent sign)",
            )
        return Unstructured(ratio)
    raise PatternError(f"pattern {named} cannot be read", wanted=_WANTED)
