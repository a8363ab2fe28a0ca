"""What is measured of the experts of one block, for the methods that score them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """What the router of one block sends to its experts, and what they make of it.

    Sums over the calibration tokens that an expert is sent, float64 [experts] each, on the CPU.

    Attributes:
        tokens: how many there are.
        gates: of the weight that the router gives the expert's output.
        norms: of the L2 norm of the expert's output, before it is weighed.
        gated_norms: of the product of the two.
    """

    tokens: Tensor
    gates: Tensor
    norms: Tensor
    gated_norms: Tensor

    def mean(self, sums: Tensor) -> Tensor:
        """One of the sums over the number of tokens, [experts]; 0 where there are none."""
        return sums / self.tokens.clamp(min=1)


@dataclass(frozen=True)
class Absence:
    """What a mixture of experts gives without some of them, next to what the dense one gives.

    Attributes:
        error: norm2(y - y')**2 / norm2(y)**2 over some tokens; y [tokens, width] of the dense
            mixture, y' of that in which the router picks and weighs among the experts left.
    """

    error: float


RoutingFunction = Callable[[Routing], Tensor]
AbsenceFunction = Callable[[Absence], float]
