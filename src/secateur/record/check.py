"""Proves the sparsity of a model from its files alone, for `secateur check`.

Every block is opened in turn and every prunable matrix is counted; what `run.json` claims is not
believed, only compared. Its checksums tell whether the files are those that the run wrote; what it
leaves dense is listed as what it says, and a weight file that nothing vouches for is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.checkpoint import (
    Checkpoint,
    LeftDense,
    find_all_matrices,
    find_left_dense,
    locate,
    open_model,
)
from secateur.errors import CheckpointError, some
from secateur.machine.paths import pinned
from secateur.machine.waiting import each
from secateur.record.check_files import changed_files, unlike_source, unproved_files
from secateur.record.check_grids import GridProof, prove_grids
from secateur.record.check_kinds import KindProof, sum_of_kind
from secateur.record.check_settings import CheckSettings
from secateur.record.check_structures import (
    KeptTensors,
    compare_kept,
    fault_of_structures,
    told_of_structures,
)
from secateur.record.matrices import MatrixRecord
from secateur.record.record import RunRecord, read_record
from secateur.sparsity import Pattern, Selection, Structures, Unstructured, audit

UNDERFLOW = 0.001
"""Share of a matrix's weights that may be zeros in the record and none in the files: those that the
precision of the run rounded to zero while it counted, float16 some below 3e-8."""


@dataclass(frozen=True)
class Proof:
    """What was counted in a model folder.

    Attributes:
        folder: the model.
        pattern: what was looked for; None if nothing was, and the counts stand alone.
        by_record: whether it is the record alone that says which matrices have which pattern.
        kinds: by kind of matrix.
        covered_by: number of the weights in which each pattern was looked for.
        left_dense: everything else, with the reason.
        files: how many have a checksum in the record.
        changed: those that are missing or not as they were written.
        unproved: files of weights that are not loaded, and what is loaded that the record does not
            know.
        grids: what was found of quantised matrices.
        misstated: names of matrices of which the record says what is not so.
        other_source: files of weights of the model that was said to be the source, and is another.
        kept: what was not to change, held against the source; None if no source was named, or
            nothing was removed.
        asked: what is to have been removed; None if nothing was asked.
        removed: what was removed of the model, a line each.
        structures: what is not so of that, in a phrase; None if all is.
    """

    folder: Path
    pattern: Selection | None
    by_record: bool
    kinds: tuple[KindProof, ...]
    covered_by: Mapping[str, int]
    left_dense: tuple[LeftDense, ...]
    files: int
    changed: tuple[str, ...]
    unproved: tuple[str, ...]
    grids: GridProof
    misstated: tuple[str, ...] = ()
    other_source: tuple[str, ...] = ()
    kept: KeptTensors | None = None
    asked: Structures | None = None
    removed: tuple[str, ...] = ()
    structures: str | None = None

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def covered(self) -> int:
        """Prunable weights in which a pattern was looked for."""
        return sum(kind.covered for kind in self.kinds)

    @property
    def zeros(self) -> int:
        """Prunable weights that are zero."""
        return sum(kind.zeros for kind in self.kinds)

    @property
    def holds(self) -> bool | None:
        """Whether every matrix that is to have a pattern has it, and there are any; None if no
        pattern was looked for.
        """
        return None if self.pattern is None else not self.failing and self.covered > 0

    @property
    def complaint(self) -> str | None:
        """What does not hold, in a line; None if all does."""
        said = [] if self.structures is None else [self.structures]
        if self.failing:
            said.append(
                f"{len(self.failing)} matrices are not {self.pattern}: {some(self.failing)}"
            )
        elif self.holds is False:
            said.append(f"{self.pattern} covers none of {self.weights} prunable weights")
        said += self.grids.complaints
        if self.changed:
            said.append(f"not as they were written: {some(self.changed)}")
        if self.unproved and (self.pattern is not None or self.files):
            said.append(f"files that nothing vouches for: {', '.join(self.unproved)}")
        if self.misstated:
            said.append(f"run.json says otherwise of {some(self.misstated)}")
        if self.other_source:
            said.append(f"not the source that it was made from: {some(self.other_source)}")
        if self.unlike:
            said.append(f"tensors that are not the source's: {some(self.unlike)}")
        return " | ".join(said) or None

    @property
    def unlike(self) -> tuple[str, ...] | None:
        """Tensors that are to be the source's and are not; None if none were compared."""
        return None if self.kept is None else self.kept.unlike

    @property
    def failing(self) -> tuple[str, ...]:
        """Names of the matrices that do not have the pattern."""
        return tuple(name for kind in self.kinds for name in kind.failing)

    def as_dict(self) -> dict[str, Any]:
        """The proof as plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "pattern": None if self.pattern is None else str(self.pattern),
            "holds": self.holds,
            "complaint": self.complaint,
            "weights": self.weights,
            "covered_weights": self.covered,
            "covered_by": dict(self.covered_by),
            "matrices_chosen_by": "run.json" if self.by_record else "the command",
            "zeros": self.zeros,
            "kinds": [{**asdict(kind), "verdict": kind.verdict} for kind in self.kinds],
            "left_dense": [asdict(left) for left in self.left_dense],
            "files": self.files,
            "changed_files": list(self.changed),
            "unproved_files": list(self.unproved),
            "misstated_matrices": list(self.misstated),
            "other_source": list(self.other_source),
            "removed": list(self.removed),
            "quantised": asdict(self.grids),
            "unlike_source": None if self.unlike is None else list(self.unlike),
            "compared": None if self.kept is None else str(self.kept),
        }


def check_folder(model: str, pattern: str | float | None = None, **options: Any) -> Proof:
    """Count the zeros of every prunable matrix of a model folder.

    Args:
        model: folder or hub name.
        pattern: what is looked for.
        options: every other field of `CheckSettings`.

    Raises:
        SecateurError: what is looked for, or the folder, cannot be read.
    """
    settings = CheckSettings.build({"model": model, "pattern": pattern, **options})
    trust = settings.trust_remote_code
    folder = locate(pinned(settings.model, settings.revision), trust_remote_code=trust)
    record = read_record(folder)
    selection = settings.selection(record)
    if selection is None and record is not None and not (record.removes or settings.structures):
        raise CheckpointError(
            "the run record names no pattern", where=folder / "run.json", hint="--pattern"
        )
    checkpoint = Checkpoint(folder, trust_remote_code=trust)
    # a precision that holds every stored value: any other would round small weights to zero
    stored = {checkpoint.dtype(name) for name in checkpoint.names}
    dtype = torch.float64 if torch.float64 in stored else torch.float32
    source = open_model(folder, torch.device("cpu"), dtype, trust_remote_code=trust)
    shared = None if settings.asks or record is None else _shared_out(record)
    sharing: dict[str, int] = {}  # name -> zeros above what its rows are to have, or below
    by_kind: dict[str, list[MatrixRecord]] = {}
    covered: Counter[str] = Counter()  # by kind
    covered_by: Counter[str] = Counter()
    every = find_all_matrices(source.blocks)
    for index, matrices in enumerate(each("counting zeros by block", every)):
        with source.open_block(index):
            for matrix in matrices:
                name = source.blocks.prefix(index) + matrix.name
                asked = None if selection is None else selection.pattern_of(index, name)
                counted = audit(matrix.read(), asked)
                columns = counted.columns
                if isinstance(asked, Unstructured) and asked == shared and asked.fits(columns):
                    due = max(1, asked.pruned_of(columns) - 1)  # in every row
                    sharing[name] = counted.zeros - counted.rows * due
                    counted = audit(matrix.read())
                by_kind.setdefault(matrix.kind, []).append(MatrixRecord.of(name, counted))
                if asked is not None:
                    covered[matrix.kind] += counted.weights
                    covered_by[str(asked)] += counted.weights
    short = frozenset(sharing if sum(sharing.values()) < 0 else ())
    files, made_from = {} if record is None else record.files, settings.source
    return Proof(
        folder=folder,
        pattern=selection,
        by_record=not settings.asks and selection is not None,
        kinds=tuple(
            sum_of_kind(kind, matrices, covered[kind], short) for kind, matrices in by_kind.items()
        ),
        covered_by=dict(covered_by),
        left_dense=find_left_dense(source, selection),
        files=len(files),
        changed=changed_files(folder, files),
        unproved=unproved_files(checkpoint, record),
        misstated=() if record is None else _misstated(record, by_kind),
        other_source=() if made_from is None else unlike_source(made_from, record, settings.model),
        kept=None if made_from is None else compare_kept(made_from, record, source),
        asked=settings.structures,
        removed=told_of_structures(record),
        structures=fault_of_structures(source, record, settings.structures),
        grids=prove_grids(checkpoint, source, record),
    )


def _shared_out(record: RunRecord) -> Pattern | None:
    """The ratio that the last stage shared out, which all matrices together have; or None."""
    settings = record.pruning[-1].settings if record.pruning else {}
    selection = record.selection
    if selection is None or settings.get("allocation", "uniform") == "uniform":
        return None
    return selection.pattern


def _misstated(record: RunRecord, by_kind: Mapping[str, list[MatrixRecord]]) -> tuple[str, ...]:
    """Names of the matrices that are not there as a record has them, or have fewer zeros."""
    counted = {matrix.name: matrix for matrices in by_kind.values() for matrix in matrices}
    told = (matrix for block in record.blocks for matrix in block.matrices)
    return tuple(one.name for one in told if not _is_so(one, counted.get(one.name)))


def _is_so(told: MatrixRecord, counted: MatrixRecord | None) -> bool:
    if counted is None or (told.rows, told.columns) != (counted.rows, counted.columns):
        return False
    return told.zeros - counted.zeros <= told.rows * told.columns * UNDERFLOW
