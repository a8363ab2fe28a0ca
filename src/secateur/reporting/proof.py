"""The sparsity that was counted, row by row and matrix by matrix, and whether the pattern holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.reporting.comparison import Row
from secateur.reporting.damage import Place
from secateur.reporting.figures import Grid, short_kind


@dataclass(frozen=True)
class Proof:
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


def prove_row(row: Row, found: Sequence[Place]) -> Proof:
    """What was counted in all runs of a row."""
    matrices = sum(place.matrices for place in found)
    failing = tuple(dict.fromkeys(name for place in found for name in place.failing))
    return Proof(
        name=row.name,
        pattern=row.pattern,
        matrices=matrices,
        holding=matrices - len(failing),
        weights=row.runs[0].weights,
        sparsity=min(run.sparsity for run in row.runs),
        lowest=min(place.sparsity for place in found),
        failing=failing,
    )


def zeros_of_matrices(
    pattern: str, rows: Sequence[Row], found: Mapping[int, Sequence[Place]]
) -> Grid:
    """Share of zeros of every matrix; "fails" beside it where the pattern was not found."""
    first = found[id(rows[0])]
    columns = [{(place.block, place.kind): place for place in found[id(row)]} for row in rows]
    cells = []
    for place in first:
        name = f"{place.block} {short_kind(place.kind, first)}"
        if place.matrices > 1:
            name += f", {place.matrices} of them"
        shape = f"{place.shape[0]} x {place.shape[1]}"
        shares = [_share(column.get((place.block, place.kind))) for column in columns]
        cells.append((name, (shape, *shares)))
    heads = ("shape", *(row.name for row in rows))
    return Grid(f"Zeros of every matrix at {pattern} (%)", heads, tuple(cells))


def _share(place: Place | None) -> str:
    if place is None:
        return ""
    return f"{100 * place.sparsity:.4f}" + (" fails" if place.failing else "")
