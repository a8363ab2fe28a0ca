"""Proves the sparsity of a model from its files alone, for `secateur check`.

Every block is opened in turn and every prunable matrix is counted; what `run.json` claims is not
believed, only compared. Its checksums tell whether the files are those that the run wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.checkpoint import Checkpoint, find_all_matrices, locate, open_model
from secateur.checkpoint.durable import sha256
from secateur.errors import CheckpointError
from secateur.record.record import MatrixRecord, RunRecord, read_record
from secateur.sparsity import Selection, audit, parse_pattern


@dataclass(frozen=True)
class KindProof:
    """All matrices of one kind ("self_attn.q_proj"), over all blocks.

    Attributes:
        kind: name of the layer within the block.
        matrices: their number.
        weights, zeros: numbers of weights and of zeros in all of them.
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
            the selection leaves dense are counted, and hold whatever they are.
        kinds: by kind of matrix.
        files: how many have a checksum in the record.
        changed: those that are missing or not as they were written.
        other_source: files of weights of the model that was said to be the source, and is another.
    """

    folder: Path
    pattern: Selection | None
    kinds: tuple[KindProof, ...]
    files: int
    changed: tuple[str, ...]
    other_source: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def zeros(self) -> int:
        """Prunable weights that are zero."""
        return sum(kind.zeros for kind in self.kinds)

    @property
    def complaint(self) -> str | None:
        """What does not hold, in a line; None if all does."""
        said = []
        if self.failing:
            said.append(
                f"{len(self.failing)} matrices are not {self.pattern}: {_some(self.failing)}"
            )
        if self.changed:
            said.append(f"not as they were written: {_some(self.changed)}")
        if self.other_source:
            said.append(f"not the source that it was made from: {_some(self.other_source)}")
        return " | ".join(said) or None

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
            "files": self.files,
            "changed_files": list(self.changed),
            "other_source": list(self.other_source),
        }


def check_folder(
    model: str,
    pattern: str | None,
    made_from: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Proof:
    """Count the zeros of every prunable matrix of a model folder.

    Args:
        model: folder or hub name.
        pattern: what every matrix must have; None takes what the folder's run.json says, or looks
            for nothing if there is none.
        made_from: folder or hub name of the model that is to be its source; None looks at none.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Raises:
        SecateurError: the pattern or the folder cannot be read.
    """
    selection = None if pattern is None else Selection(parse_pattern(pattern))
    folder = locate(model, trust_remote_code=trust_remote_code)
    record = read_record(folder)
    if selection is None and record is not None:
        selection = record.selection
        if selection is None:
            raise CheckpointError(
                "the run record names no pattern", where=folder / "run.json", hint="--pattern"
            )
    # float32 holds every stored value: half precision would round small weights to zero
    cpu = torch.device("cpu")
    source = open_model(folder, cpu, torch.float32, trust_remote_code=trust_remote_code)
    by_kind: dict[str, list[MatrixRecord]] = {}
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        with source.open_block(index):
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                asked = None if selection is None else selection.pattern_of(index, name)
                counted = MatrixRecord.of(name, audit(matrix.read(), asked))
                by_kind.setdefault(matrix.kind, []).append(counted)
    kinds = tuple(_sum(kind, matrices) for kind, matrices in by_kind.items())
    files = {} if record is None else record.files
    other = () if made_from is None else _other_source(locate(made_from), record, folder)
    return Proof(folder, selection, kinds, len(files), _changed(folder, files), other)


def _other_source(made_from: Path, record: RunRecord | None, folder: Path) -> tuple[str, ...]:
    """Names of the files of weights that are not those that the run of a record read.

    Raises:
        CheckpointError: there is no record, or it does not say what the run read.
    """
    recorded = {} if record is None else record.source_files
    if not recorded:
        raise CheckpointError(
            "no run record that says which source it was", where=folder, hint="without --source"
        )
    files = Checkpoint(made_from).source
    files.read_all()
    told = files.sums()
    names = sorted(told.keys() | recorded.keys())
    return tuple(name for name in names if told.get(name) != recorded.get(name))


def _changed(folder: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the files that do not have the checksum in the record."""
    changed = []
    for name, checksum in files.items():
        path = folder / Path(name).name  # the record may be anybody's: it cannot lead elsewhere
        if not path.is_file() or sha256(path) != checksum:
            changed.append(name)
    return tuple(changed)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _sum(kind: str, matrices: list[MatrixRecord]) -> KindProof:
    return KindProof(
        kind=kind,
        matrices=len(matrices),
        weights=sum(matrix.rows * matrix.columns for matrix in matrices),
        zeros=sum(matrix.zeros for matrix in matrices),
        lowest=min(matrix.sparsity for matrix in matrices),
        highest=max(matrix.sparsity for matrix in matrices),
        failing=tuple(matrix.name for matrix in matrices if not matrix.holds),
    )
