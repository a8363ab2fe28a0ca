"""What a stage did to every block and every matrix; a part of `run.json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from secateur.record.schema import Measured, RecordPart, WholeNumber
from secateur.sparsity import MatrixAudit


class MatrixRecord(RecordPart):
    """What was counted in one matrix after pruning."""

    name: str
    """Parameter name in the model."""
    rows: WholeNumber
    columns: WholeNumber
    zeros: WholeNumber
    holds: bool
    """Whether the pattern was found exactly."""
    output_error: Measured | None = None
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
        return self.zeros / max(1, self.rows * self.columns)


class BlockRecord(RecordPart):
    """One block of the run."""

    index: WholeNumber
    output_error: Measured | None
    """norm2(f_dense - f_sparse) / norm2(f_dense) over the calibration tokens; None where it was not
    measured, as of what is left of structures."""
    judged: tuple[float, float] | None = None
    """The same on sequences that no optimiser step saw, before and after the regional optimiser,
    against what the optimiser aims at."""
    parameters: dict[str, Any] = Field(default={})
    """Those of the method that suited the block, where every block chose among several."""
    seconds: dict[str, Measured]
    """Wall time by phase."""
    notices: tuple[str, ...]
    """What went otherwise than planned."""
    matrices: tuple[MatrixRecord, ...]
