"""The sparsity that was counted, row by row and matrix by matrix, and whether the pattern holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.reporting.comparison import Row
from secateur.reporting.damage import MatrixGroup
from secateur.reporting.figures import Grid, short_kinds
from secateur.sparsity import IN_FULL


@dataclass(frozen=True)
class RowAudit:
    """What was counted in the matrices of a row.

    Attributes:
        name, pattern: of the row.
        matrices, holding: of one run: how many, and how many have the pattern in every run.
        weights: of one run.
        sparsity: over all weights; lowest: of the densest matrix.
        failing: names of the matrices that do not have the pattern.
    """

    name: str
    pattern: str
    matrices: int
    holding: int
    weights: int
    sparsity: float
    lowest: float
    failing: tuple[str, ...]


def audit_row(row: Row, groups: Sequence[MatrixGroup]) -> RowAudit:
    """What was counted in all runs of a row."""
    matrices = sum(group.matrices for group in groups)
    failing = tuple(dict.fromkeys(name for group in groups for name in group.failing))
    return RowAudit(
        name=row.name,
        pattern=row.pattern,
        matrices=matrices,
        holding=matrices - len(failing),
        weights=row.runs[0].weights,
        sparsity=min(run.sparsity for run in row.runs),
        lowest=min(group.sparsity for group in groups),
        failing=failing,
    )


@dataclass(frozen=True)
class RowRemoval:
    """What was removed of the model in the runs of a row.

    Attributes:
        name: of the row.
        gone: by seed, what went; the same line once.
        left: what is left, of how many, in words.
        weights: share of the prunable weights that is gone, 0 to 1.
    """

    name: str
    gone: tuple[str, ...]
    left: str
    weights: float


def removal_of(row: Row) -> RowRemoval:
    """What was removed of the model in the runs of a row, whose first at least removed some."""
    run = row.runs[0]
    lines = ("; ".join(one.which for one in each.lost) for each in row.runs)
    left = {one.unit: f"{one.left} of {one.of} {IN_FULL[one.unit]}" for one in run.lost}
    return RowRemoval(
        name=row.name,
        gone=tuple(dict.fromkeys(lines)),
        left=", ".join(left.values()),
        weights=1 - run.weights / run.dense_weights,
    )


def zeros_of_matrices(
    pattern: str, rows: Sequence[Row], groups_by_row: Mapping[int, Sequence[MatrixGroup]]
) -> Grid:
    """Share of zeros of every matrix; "fails" beside it where the pattern does not hold."""
    first = groups_by_row[id(rows[0])]
    short = short_kinds(first)
    columns = [
        {(group.block, group.kind): group for group in groups_by_row[id(row)]} for row in rows
    ]
    cells = []
    for group in first:
        name = f"{group.block} {short[group.kind]}"
        if group.matrices > 1:
            name += f", {group.matrices} of them"
        shape = f"{group.shape[0]} x {group.shape[1]}"
        shares = [_share(column.get((group.block, group.kind))) for column in columns]
        cells.append((name, (shape, *shares)))
    heads = ("shape", *(row.name for row in rows))
    return Grid(f"Zeros of every matrix at {pattern} (%)", heads, tuple(cells))


def _share(group: MatrixGroup | None) -> str:
    if group is None:
        return ""
    return f"{100 * group.sparsity:.4f}" + (" fails" if group.failing else "")
