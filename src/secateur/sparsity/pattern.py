"""Sparsity patterns and how people write them.

    "50%", "0.5"   unstructured: that share of the weights is zero
    "2:4", "4:8"   N:M: of every M consecutive weights along the input dimension, N are KEPT

Two conventions for N exist in the field (kept or pruned); they agree only at one half. Ours is
"N of M are kept", which is also what NVIDIA's 2:4 hardware documentation means.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from secateur.errors import PatternError

_WANTED = "a ratio such as 50% or 0.5, or N:M (N of every M weights kept) such as 2:4"


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


Pattern = Unstructured | NofM


def _without(matrix: str, nearest: Pattern | None) -> str:
    """What to try where a pattern does not fit a matrix: one that does, or to leave it out.

    >>> _without("model.layers.3.mlp.down_proj.weight", NofM(1, 2))
    "1:2, or --exclude 'mlp.down_proj'"
    """
    inside = re.sub(r"^.*\.\d+\.(?=[^.]*[a-z])", "", matrix.removesuffix(".weight"))
    leave_out = f"--exclude '{inside}'"
    return leave_out if nearest is None else f"{nearest}, or {leave_out}"


def parse_pattern(text: str | float | Pattern) -> Pattern:
    """Read a pattern as a person writes it: "2:4", "50%", "0.5", 0.5.

    Raises:
        PatternError: it is none of these, or asks for nothing or everything to be pruned.
    """
    if isinstance(text, Unstructured | NofM):
        return text
    written = str(text).strip()
    named = repr(written if len(written) <= 40 else f"{written[:37]}...")
    if match := re.fullmatch(r"([0-9]{1,6})\s*:\s*([0-9]{1,6})", written):
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise PatternError(
                f"pattern {named} keeps {n} of {m} weights",
                wanted="N:M with 0 < N < M, N being the number kept",
                hint="2:4",
            )
        return NofM(n, m)
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
