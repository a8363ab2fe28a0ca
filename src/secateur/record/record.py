"""The record of a run, `run.json`: everything needed to repeat it and to check what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.checkpoint.durable import write_text, writing
from secateur.data import ImageProtocol, Protocol
from secateur.errors import CheckpointError
from secateur.evaluation import Evaluation, TaskEvaluation
from secateur.sparsity import MatrixAudit


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class MatrixRecord(_Record):
    """What was counted in one matrix after pruning."""

    name: str
    """Parameter name in the model."""
    rows: int
    columns: int
    zeros: int
    holds: bool
    """Whether the pattern was found exactly."""
    output_error: float | None = None
    """norm2(X (W - W_sparse)') / norm2(X W') over the first calibration tokens."""

    @classmethod
    def of(cls, name: str, audit: MatrixAudit, output_error: float | None = None) -> MatrixRecord:
        """The record of an audit."""
        return cls(
            name=name,
            rows=audit.rows,
            columns=audit.columns,
            zeros=audit.zeros,
            holds=audit.holds,
            output_error=output_error,
        )

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / (self.rows * self.columns)


class BlockRecord(_Record):
    """One block of the run."""

    index: int
    output_error: float | None
    """norm2(f_dense - f_sparse) / norm2(f_dense) over the calibration tokens."""
    judged: tuple[float, float] | None = None
    """The same on sequences that no optimiser step saw, before and after the regional optimiser,
    against what the optimiser aims at."""
    seconds: dict[str, float]
    """Wall time by phase."""
    notices: tuple[str, ...]
    """What went otherwise than planned."""
    matrices: tuple[MatrixRecord, ...]


class Sample(_Record):
    """A few lines that a model wrote, greedily."""

    prompt: str
    dense: str
    """How the dense model went on."""
    pruned: str
    """How the pruned model went on."""


class RecoveryPoint(_Record):
    """One evaluation while a pruned model was trained."""

    step: int
    """Steps that were done."""
    loss: float | None
    """Mean training loss per step since the evaluation before; none before the first step."""
    validation_loss: float
    """Mean negative log-likelihood per token of text that is not trained on, in nats."""
    learning_rate: float
    seconds: float
    """Wall time since the beginning, interruptions left out."""


class RecoveryRecord(_Record):
    """What was done to a pruned model to take back what pruning cost."""

    created: str
    """UTC, ISO 8601."""
    settings: dict[str, Any]
    """Every option, defaults included."""
    text: Protocol
    """What it was trained on, the validation sequences included."""
    trained_parameters: int
    curve: tuple[RecoveryPoint, ...]
    """The first point is before training."""
    steps: int
    """That were done; fewer than were asked for if it stopped early."""
    best_step: int
    """The result is the state after this step, the best by its validation loss."""
    interruptions: int
    """How often it went on from a checkpoint."""
    dense: Evaluation | None
    pruned: Evaluation | None
    """Before training."""
    adapted: Evaluation | None
    """After training, before the merge."""
    recovered: Evaluation | None
    """The result; with adapters beside the model, the same as `adapted`."""
    also: tuple[Evaluation, ...] = ()
    """The result on further texts."""
    zeros_before: int
    """In all prunable matrices."""
    zeros_after: int
    """In the result; every zero before is one."""
    seconds: float
    versions: dict[str, str]
    machine: dict[str, str]
    notices: tuple[str, ...]

    @property
    def damage_removed(self) -> float | None:
        """Share of what pruning cost in perplexity that was taken back; 1 is dense."""
        if self.dense is None or self.pruned is None or self.recovered is None:
            return None
        damage = self.pruned.perplexity - self.dense.perplexity
        return (self.pruned.perplexity - self.recovered.perplexity) / damage if damage else None


class RunRecord(_Record):
    """A whole pruning run."""

    format: Literal["secateur/run/1"] = "secateur/run/1"
    created: str
    """UTC, ISO 8601."""
    recipe: dict[str, Any]
    """Every option, defaults included."""
    architecture: str
    streamed: bool
    """Whether blocks came from disk one at a time; otherwise the model was in memory."""
    device: str
    dtype: str
    """Precision of the computation; statistics and master weights are float32."""
    calibration: Protocol | ImageProtocol | None
    blocks: tuple[BlockRecord, ...]
    evaluations: tuple[Evaluation, ...] = ()
    """Held-out perplexity, measured while the blocks passed."""
    recovery: RecoveryRecord | None = None
    """If the model was trained after it was pruned; everything above is of the pruning."""
    tasks: tuple[TaskEvaluation, ...] = ()
    """What the model in this folder scored, if it was recorded."""
    sample: Sample | None = None
    seconds: float
    """Wall time of the run but for measuring; what other runs did for it is counted in."""
    peak_memory_bytes: int
    """Largest resident memory of the process so far; of several, of the largest."""
    peak_device_memory_bytes: int | None
    """Largest memory allocated on the accelerator, if there was one."""
    processes: int = 1
    """That the sequences were split over."""
    versions: dict[str, str]
    machine: dict[str, str]
    repeatable: str = ""
    """Where the same recipe gives the same bits again."""
    notices: tuple[str, ...]
    files: dict[str, str] = {}
    """SHA-256 of every file in the result folder but this one, by name."""

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(m.rows * m.columns for block in self.blocks for m in block.matrices)

    @property
    def zeros(self) -> int:
        """Weights that are zero."""
        return sum(m.zeros for block in self.blocks for m in block.matrices)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the prunable weights."""
        return self.zeros / self.weights

    @property
    def mean_output_error(self) -> float | None:
        """Mean over blocks of the relative output error."""
        errors = [block.output_error for block in self.blocks if block.output_error is not None]
        return sum(errors) / len(errors) if errors else None


def read_record(folder: Path) -> RunRecord | None:
    """The record in a folder, or None if it has none.

    Raises:
        CheckpointError: there is one and it cannot be read.
    """
    path = folder / "run.json"
    return read_record_file(path) if path.is_file() else None


def read_record_file(path: Path) -> RunRecord:
    """The record in a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as fault:
        raise CheckpointError(f"cannot be read ({fault.strerror})", where=path) from fault
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the run record cannot be read ({where + ': ' if where else ''}{first['msg']})",
            where=path,
            wanted="the run.json that secateur wrote, or none",
        ) from fault


def add_to_record(folder: Path, evaluation: TaskEvaluation) -> RunRecord:
    """Put what a model scored into the run.json beside it, in place of the same tasks before.

    Returns:
        the record as it is now.

    Raises:
        CheckpointError: there is no record.
        OutputError: it cannot be written.
    """
    record, path = read_record(folder), folder / "run.json"
    if record is None:
        raise CheckpointError("no run record to add to", where=path, hint="without --record")
    kept = tuple(other for other in record.tasks if other.asked != evaluation.asked)
    updated = record.model_copy(update={"tasks": (*kept, evaluation)})
    write_record(folder, updated)
    return updated


def write_record(folder: Path, record: RunRecord) -> None:
    """Put `run.json` into a folder, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / "run.json"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, record.model_dump_json(indent=2) + "\n")
