"""Records of what was measured of every shape of matrix, and of the form that was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from secateur.inference.forms import Form

WIN_MARGIN = 0.03
"""Differences below this share are noise: they are neither a win nor a loss."""


class Record(BaseModel):
    """Frozen, with a description of every field."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Timing(Record):
    """One product of a matrix with some vectors, in the three forms."""

    vectors: int
    """Columns of the product: sequences in decoding, tokens in all in a prompt."""
    dense_ms: float
    """Median milliseconds of the dense matrix."""
    semi_structured_ms: float | None = None
    """Median milliseconds of PyTorch's 2:4 tensor; None where it cannot take the matrix."""
    packed_ms: float | None = None
    """Median milliseconds of the packed kernel with its best tile; None where it cannot run."""

    def milliseconds(self, form: Form) -> float | None:
        """The time of one form in milliseconds; None where it was not measured."""
        return {
            "dense": self.dense_ms,
            "semi-structured": self.semi_structured_ms,
            "packed": self.packed_ms,
        }[form]


class ShapeReport(Record):
    """The times of all 2:4 matrices of one shape, dtype and device."""

    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    dtype: str
    """dtype of the weights."""
    matrices: int
    """How many there are."""
    timings: tuple[Timing, ...]
    """Times by number of vectors; empty where nothing was measured."""
    chosen: Form
    """The form that the matrices have now."""
    notes: tuple[str, ...] = ()
    """Why a form was not measured."""


class InferenceReport(Record):
    """The report of `accelerate_inference`: what it measured and did."""

    device: str
    """Devices that the matrices are on."""
    reason: str
    """One line on what was done, or why nothing was."""
    matrices: int
    """Linear layers whose matrix is exactly 2:4."""
    changed: int
    """Number of matrices that are no longer dense."""
    bytes_before: int
    """Bytes of the 2:4 matrices before."""
    bytes_after: int
    """Bytes of what took their place."""
    shapes: tuple[ShapeReport, ...]
    """Times and choice of every shape."""


def choose(timings: Sequence[Timing]) -> Form:
    """The form that wins: faster than dense on the whole, and slower at no number of vectors.

    Faster on the whole is a geometric mean of the ratios dense / form above 1 by more than the
    margin. A tie, a loss or a form that was not measured everywhere leaves the matrix dense.
    """
    best: Form = "dense"
    highest = 1 + WIN_MARGIN
    forms: tuple[Form, ...] = ("semi-structured", "packed")
    for form in forms:
        ratios = []
        for timing in timings:
            taken = timing.milliseconds(form)
            ratios.append(0.0 if taken is None else timing.dense_ms / taken)
        if not ratios or min(ratios) < 1 - WIN_MARGIN:
            continue
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        if mean > highest:
            best, highest = form, mean
    return best
