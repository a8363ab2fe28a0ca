"""Proof of sparsity: counts that the writer, `check`, the tests and the reports all share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.sparsity.pattern import NofM, Pattern


@dataclass(frozen=True)
class MatrixAudit:
    """What was counted in one matrix seen as W [out, in].

    Attributes:
        rows, columns: out and in.
        zeros: weights that are exactly zero.
        violations: N:M groups with more than N non-zeros; for an unstructured pattern, the number
            of zeros by which the matrix falls short of it. Zero when no pattern was given.
    """

    rows: int
    columns: int
    zeros: int
    violations: int

    @property
    def weights(self) -> int:
        """Number of weights, out * in."""
        return self.rows * self.columns

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.weights

    @property
    def holds(self) -> bool:
        """Whether the matrix has the pattern it was audited for."""
        return self.violations == 0


def audit(weight: Tensor, pattern: Pattern | None = None) -> MatrixAudit:
    """Count the zeros of W [out, in], and where it departs from `pattern`.

    A dense matrix may contain zeros of its own, so more zeros than asked for are no violation. An
    unstructured pattern is counted over the matrix, with each row's share rounded down: the same
    bound holds whether rows or the whole matrix competed. Where the pattern fits no row (its groups
    do not fill one, its share comes to no weight at all), every row is a violation.
    """
    rows, columns = weight.shape
    zeros = int((weight == 0).sum())
    violations = 0
    if pattern is not None and not pattern.fits(columns):
        violations = max(1, rows)
    elif isinstance(pattern, NofM):
        alive = (weight != 0).reshape(rows, -1, pattern.m).sum(dim=-1)  # [out, in / m]
        violations = int((alive > pattern.n).sum())
    elif pattern is not None:
        violations = max(0, rows * pattern.pruned_of(columns) - zeros)
    return MatrixAudit(rows=rows, columns=columns, zeros=zeros, violations=violations)
