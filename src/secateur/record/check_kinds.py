"""What was counted in all matrices of one kind, for `secateur check`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from secateur.record.matrices import MatrixRecord


@dataclass(frozen=True)
class KindProof:
    """All matrices of one kind ("self_attn.q_proj"), over all blocks.

    Attributes:
        kind: name of the layer within the block.
        matrices: their number.
        weights, zeros: numbers of weights and of zeros in all of them.
        covered: number of the weights in which a pattern was looked for.
        lowest, highest: sparsity of the densest and of the sparsest.
        failing: names of those that do not have the pattern.
    """

    kind: str
    matrices: int
    weights: int
    zeros: int
    covered: int
    lowest: float
    highest: float
    failing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether they have the pattern, in a word of five letters or less."""
        if self.failing:
            return "fails"
        if self.covered < self.weights:
            return "part" if self.covered else "dense"
        return "holds"


def sum_of_kind(
    kind: str, matrices: list[MatrixRecord], covered: int, short: Collection[str]
) -> KindProof:
    """What was counted in all matrices of a kind.

    Args:
        kind: its name.
        matrices: what was counted in each.
        covered: number of the weights in which a pattern was looked for.
        short: names of those that have not the zeros that they were to have.
    """
    return KindProof(
        kind=kind,
        matrices=len(matrices),
        weights=sum(matrix.rows * matrix.columns for matrix in matrices),
        zeros=sum(matrix.zeros for matrix in matrices),
        covered=covered,
        lowest=min(matrix.sparsity for matrix in matrices),
        highest=max(matrix.sparsity for matrix in matrices),
        failing=tuple(one.name for one in matrices if not one.holds or one.name in short),
    )
