"""Proof of sparsity from the files alone: what `secateur check` prints.

Every block is opened in turn and every prunable matrix is counted; what `run.json` claims is not
believed, only compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.checkpoint import find_all_matrices, locate, open_model
from secateur.errors import CheckpointError
from secateur.report import MatrixRecord
from secateur.report.record import read_record
from secateur.sparsity import Choice, audit, parse_pattern, read_choice


@dataclass(frozen=True)
class KindProof:
    """All matrices of one kind ("self_attn.q_proj"), over all blocks.

    Attributes:
        kind: place within the block.
        matrices: how many.
        weights, zeros: in all of them.
        lowest, highest: sparsity of the densest and of the sparsest.
        failing: names of those that do not have the pattern.
    """

    kind: str
    matrices: int
    weights: int
    zeros: int
    lowest: float
    highest: float
    failing: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """What was counted in a model folder.

    Attributes:
        folder: the model.
        pattern: what was looked for; None if nothing was, and the counts stand alone. Matrices that
            the choice leaves dense are counted, and hold whatever they are.
        kinds: by kind of matrix.
    """

    folder: Path
    pattern: Choice | None
    kinds: tuple[KindProof, ...]

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def zeros(self) -> int:
        """Those that are zero."""
        return sum(kind.zeros for kind in self.kinds)

    @property
    def failing(self) -> tuple[str, ...]:
        """Names of the matrices that do not have the pattern."""
        return tuple(name for kind in self.kinds for name in kind.failing)

    def as_dict(self) -> dict[str, Any]:
        """The proof as plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "pattern": None if self.pattern is None else str(self.pattern),
            "holds": None if self.pattern is None else not self.failing,
            "weights": self.weights,
            "zeros": self.zeros,
            "kinds": [asdict(kind) for kind in self.kinds],
        }


def prove(model: str, pattern: str | None) -> Proof:
    """Count the zeros of every prunable matrix of a model folder.

    Args:
        model: folder or hub name.
        pattern: what every matrix must have; None takes what the folder's run.json says, or looks
            for nothing if there is none.

    Raises:
        SecateurError: the pattern or the folder cannot be read.
    """
    wanted = None if pattern is None else Choice(parse_pattern(pattern))
    folder = locate(model)
    if wanted is None and (record := read_record(folder)) is not None:
        if "pattern" not in record.recipe:
            raise CheckpointError(
                "the run record names no pattern", where=folder / "run.json", hint="--pattern"
            )
        wanted = read_choice(record.recipe)
    # float32 holds every stored value: half precision would round small weights to zero
    source = open_model(folder, torch.device("cpu"), torch.float32)
    by_kind: dict[str, list[MatrixRecord]] = {}
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        with source.open_block(index):
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                own = None if wanted is None else wanted.pattern_of(index, name)
                found = MatrixRecord.of(name, audit(matrix.read(), own))
                by_kind.setdefault(matrix.kind, []).append(found)
    return Proof(folder, wanted, tuple(_sum(kind, found) for kind, found in by_kind.items()))


def _sum(kind: str, found: list[MatrixRecord]) -> KindProof:
    return KindProof(
        kind=kind,
        matrices=len(found),
        weights=sum(matrix.rows * matrix.columns for matrix in found),
        zeros=sum(matrix.zeros for matrix in found),
        lowest=min(matrix.sparsity for matrix in found),
        highest=max(matrix.sparsity for matrix in found),
        failing=tuple(matrix.name for matrix in found if not matrix.holds),
    )
