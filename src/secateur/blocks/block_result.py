"""What a sweep hands over of every block."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from secateur.methods import Params
from secateur.quantization import RoundedMatrix
from secateur.sparsity import MatrixAudit


@dataclass(frozen=True)
class BlockResult:
    """One pruned block.

    Attributes:
        index: which block.
        changed: parameter name in the model -> new value, in the orientation and dtype stored.
        audits: name of a matrix in the model -> what was counted in it, pruned or not.
        output_error: norm2(f_dense - f_sparse) / norm2(f_dense) over the first batch, or None
            without calibration, if nothing in it is pruned, or if it never ran dense.
        matrix_errors: the same of every matrix alone, by its name in the model, on its first
            inputs; empty without calibration, and without an expert that no token reached.
        seconds: wall time by phase.
        notices: what the user should know, a line each.
        judged: relative output error on sequences that no optimiser step saw, before and after the
            regional optimiser; None without one.
        params: the method's parameters that suited the block, where it chose among several.
        rounded: name of a matrix in the model -> how it is stored, if it is quantised.
    """

    index: int
    changed: dict[str, Tensor]
    audits: dict[str, MatrixAudit]
    output_error: float | None
    matrix_errors: dict[str, float]
    seconds: dict[str, float]
    notices: tuple[str, ...]
    judged: tuple[float, float] | None = None
    params: Params | None = None
    rounded: dict[str, RoundedMatrix] = field(default_factory=dict)
