"""Where pruning does its damage, and what was counted there: by block and by kind of matrix.

All numbers are means over the runs of a row. Matrices of one kind in one block, such as the experts
of a mixture, are taken together.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.record import BlockRecord, MatrixRecord
from secateur.reporting.comparison import Row


@dataclass(frozen=True)
class MatrixGroup:
    """The matrices of one kind in one block, over all runs of a row.

    Attributes:
        block: its number.
        kind: place within the block, such as "self_attn.q_proj"; * stands for an expert's number.
        matrices: how many there are in a run.
        shape: rows x columns of the first.
        sparsity: share of zeros of the densest.
        failing: names of those that do not have the pattern, in any run.
        output_error: mean of the relative output error; None if it was not measured.
    """

    block: int
    kind: str
    matrices: int
    shape: tuple[int, int]
    sparsity: float
    failing: tuple[str, ...]
    output_error: float | None


def matrix_groups(row: Row) -> tuple[MatrixGroup, ...]:
    """Every block and kind of a row, in the order of the model."""
    matrices_by_kind: dict[tuple[int, str], list[MatrixRecord]] = {}
    for run in row.runs:
        for block in run.blocks:
            for matrix in block.matrices:
                matrices_by_kind.setdefault((block.index, kind(block, matrix)), []).append(matrix)
    return tuple(
        MatrixGroup(
            block=index,
            kind=name,
            matrices=len(matrices) // len(row.runs),
            shape=(matrices[0].rows, matrices[0].columns),
            sparsity=min(matrix.sparsity for matrix in matrices),
            failing=tuple(dict.fromkeys(matrix.name for matrix in matrices if not matrix.holds)),
            output_error=_mean(matrix.output_error for matrix in matrices),
        )
        for (index, name), matrices in matrices_by_kind.items()
    )


def kind(block: BlockRecord, matrix: MatrixRecord) -> str:
    """The place of a matrix within its block: model.layers.7.mlp.up_proj.weight -> mlp.up_proj."""
    _, _, within = matrix.name.partition(f".{block.index}.")
    return re.sub(r"\b\d+\b", "*", (within or matrix.name).removesuffix(".weight"))


def error_by_block(row: Row) -> tuple[float | None, ...]:
    """Relative output error of every block."""
    by_block = zip(*(run.blocks for run in row.runs), strict=False)
    return tuple(_mean(block.output_error for block in blocks) for blocks in by_block)


def error_by_kind(groups: tuple[MatrixGroup, ...]) -> dict[str, float | None]:
    """Relative output error of every kind, the mean over blocks."""
    errors: dict[str, list[float | None]] = {}
    for group in groups:
        errors.setdefault(group.kind, []).append(group.output_error)
    return {name: _mean(iter(values)) for name, values in errors.items()}


def seconds_by_phase(row: Row) -> dict[str, float]:
    """Wall time of every phase over all blocks, a run's mean; the rest as "other"."""
    total: dict[str, float] = {}
    for run in row.runs:
        for block in run.blocks:
            for phase, seconds in block.seconds.items():
                total[phase] = total.get(phase, 0.0) + seconds / len(row.runs)
    rest = row.seconds - sum(total.values())
    return {**total, "other": max(0.0, rest)}


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
