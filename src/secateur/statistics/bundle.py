"""What a method may read about one matrix: every statistic that it declared, and no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from secateur.errors import NumericalError


class Need(StrEnum):
    """A statistic that a method can ask for."""

    INPUT_NORM = "input_norm"
    HESSIAN = "hessian"
    REGIONAL_GRADIENT = "regional_gradient"
    FULL_GRADIENT = "full_gradient"


GRADIENTS = frozenset({Need.REGIONAL_GRADIENT, Need.FULL_GRADIENT})
"""Statistics that are known only once a loss is sent back."""


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity.

    A sum that is finite has none among its terms, and is made many times faster than a look at
    each. One that is not may have overflowed.
    """
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(torch.isfinite(values).all())


def uninformed(
    needs: Iterable[Need], shape: tuple[int, int], device: torch.device
) -> dict[Need, Tensor]:
    """Statistics that say nothing: with them every method ranks weights by magnitude.

    All inputs have norm 1 and are orthogonal, all gradients are 1.

    Args:
        needs: which statistics.
        shape: of the matrix, (out, in).
        device: of the tensors, which are float32.
    """
    make = {
        Need.INPUT_NORM: lambda: torch.ones(shape[1], device=device),
        Need.HESSIAN: lambda: torch.eye(shape[1], device=device),
        Need.REGIONAL_GRADIENT: lambda: torch.ones(shape, device=device),
        Need.FULL_GRADIENT: lambda: torch.ones(shape, device=device),
    }
    return {need: make[need]() for need in needs}


@dataclass(frozen=True, eq=False)
class Statistics:
    """The finished statistics of one matrix W [out, in].

    Attributes:
        values: the tensors that were gathered, by need.
        sequences: number of calibration sequences they were gathered over.
        length: tokens of each, if they are text; None for images, whose loss is no mean over them.

    Reading a statistic that is not among `values` raises `LookupError`: the method did not
    declare that it needs it.
    """

    values: Mapping[Need, Tensor]
    sequences: int
    length: int | None = None

    @property
    def input_norm(self) -> Tensor:
        """l2 norm of each input over all calibration tokens, float32 [in]."""
        return self._get(Need.INPUT_NORM)

    @property
    def hessian(self) -> Tensor:
        """Mean over sequences of 2 X_n' X_n, float32 [in, in]."""
        return self._get(Need.HESSIAN)

    @property
    def regional_gradient(self) -> Tensor:
        """Root mean square over sequences of d norm2(block output) / dW, float32 [out, in]."""
        return self._get(Need.REGIONAL_GRADIENT)

    @property
    def full_gradient(self) -> Tensor:
        """Aggregate over sequences of d (model loss) / dW, float32 [out, in]."""
        return self._get(Need.FULL_GRADIENT)

    @property
    def without_gradient(self) -> bool:
        """Whether a gradient was gathered beside the input norm, and is zero for every weight."""
        gathered = [value for need, value in self.values.items() if need in GRADIENTS]
        known = bool(gathered) and Need.INPUT_NORM in self.values
        return known and not any(bool(value.any()) for value in gathered)

    def first_not_finite(self) -> Need | None:
        """The first statistic with a NaN or an infinity in it, or None."""
        for need, value in self.values.items():
            if not all_finite(value):
                return need
        return None

    def _get(self, need: Need) -> Tensor:
        if need not in self.values:
            raise LookupError(f"the method reads {need.value} but does not declare it in `needs`")
        return self.values[need]


def check_finite(values: Tensor, what: str, where: str, hint: str | None = None) -> None:
    """Raise `NumericalError` "`what` not finite in `where`" if there is a NaN or an infinity."""
    if not all_finite(values):
        raise NumericalError(f"{what} not finite", where=where, hint=hint)
