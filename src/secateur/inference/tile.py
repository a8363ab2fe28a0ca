"""How the packed kernel cuts its work: tiles of rows and groups, splits along the input.

One program takes `rows` outputs and walks over its share of the input, `groups` groups of four at a
time. With few rows there are too few programs to fill a GPU, hence `splits`: each takes its share
of the input and the partial sums are added afterwards, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_VECTORS = 64
"""Beyond this the matrix is unpacked for the dense routine: work rules, not reading."""
MOST_BY_FMA = 4
"""Vectors up to which multiplying without tensor cores may win."""


@dataclass(frozen=True)
class Tile:
    """One way of cutting a product of a packed matrix.

    Attributes:
        rows: outputs of a program; a power of two, at least 16 with `dot`.
        groups: groups of four inputs that it reads at once; a power of two, at least 2, and at
            least 4 with `dot`.
        splits: programs that share the input of a row.
        warps: of a program.
        stages: how many reads are under way at once.
        dot: whether tensor cores multiply; FMA in float32 otherwise.
    """

    rows: int
    groups: int
    splits: int = 1
    warps: int = 4
    stages: int = 3
    dot: bool = False

    def share(self, groups: int) -> int:
        """Groups of one split: a multiple of `self.groups`, so that no tile belongs to two."""
        tiles = -(-groups // self.groups)
        return -(-tiles // self.splits) * self.groups


def candidates(vectors: int) -> tuple[Tile, ...]:
    """Tiles worth measuring for so many vectors; the first is used where nothing was measured."""
    by_fma = (
        Tile(8, 128, splits=1, warps=4),
        Tile(8, 128, splits=2, warps=4),
        Tile(8, 128, splits=4, warps=4),
        Tile(4, 128, splits=1, warps=2),
        Tile(4, 128, splits=2, warps=2),
        Tile(16, 64, splits=2, warps=4),
        Tile(16, 64, splits=4, warps=4, stages=4),
    )
    by_dot = (
        Tile(32, 32, splits=4, warps=4, dot=True),
        Tile(32, 32, splits=2, warps=4, dot=True),
        Tile(32, 32, splits=8, warps=4, dot=True),
        Tile(16, 32, splits=4, warps=2, dot=True),
        Tile(64, 32, splits=4, warps=4, dot=True),
        Tile(64, 32, splits=8, warps=4, stages=4, dot=True),
    )
    if vectors <= MOST_BY_FMA // 2:
        return by_fma + by_dot[:2]
    return by_dot + by_fma[:3] if vectors <= MOST_BY_FMA else by_dot
