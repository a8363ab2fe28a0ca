"""What the data say of structures that may be removed, and how a method scores them by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class States:
    """What blocks do to the hidden states, some tokens at a time.

    Attributes:
        before: the hidden states before the first of the blocks, [tokens, width].
        after: the same after the last of them.
    """

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Effect:
    """What a change does to what the model predicts, on average over tokens.

    Attributes:
        loss: negative log-likelihood of a token, in nats.
        divergence: KL divergence of the predictions from the dense model's, in nats.
    """

    loss: float
    divergence: float


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


StatesFunction = Callable[[States], Tensor]
EffectFunction = Callable[[Effect], float]
InputsFunction = Callable[[Tensor], Tensor]
HessianFunction = Callable[[Tensor, Tensor, int, int], Tensor]
RoutingFunction = Callable[[Routing], Tensor]
AbsenceFunction = Callable[[Absence], float]
RemovalKind = Literal[
    "of_states", "of_effect", "of_inputs", "of_hessian", "of_routing", "of_absence"
]
"""The function of `Removal` that a method is."""


@dataclass(frozen=True)
class Removal:
    """How a method scores a structure that may be removed; exactly one of the functions.

    Attributes:
        of_states: its importance to every token [tokens], of what blocks do to hidden states; the
            mean over the tokens counts.
        of_effect: its importance, of what the model predicts without it.
        of_inputs: the importance [in] of what a matrix reads, of its norms [in] over all tokens
            (`statistics/input_norm.py`); the sum over what a structure makes of it counts.
        of_hessian: the numbers of those that go, of what a matrix [out, in] that reads them, the
            Hessian [in, in] of its inputs, the columns of a structure, and how many go; what is
            left of the matrix makes up for them afterwards, by least squares.
        of_routing: the importance of every expert of a block [experts], of what its router does.
        of_absence: that of one expert, of what its block's mixture gives without it.
        again: whether the others are scored anew after each structure that goes.
    """

    of_states: StatesFunction | None = None
    of_effect: EffectFunction | None = None
    of_inputs: InputsFunction | None = None
    of_hessian: HessianFunction | None = None
    of_routing: RoutingFunction | None = None
    of_absence: AbsenceFunction | None = None
    again: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """The structures that it scores, as patterns name them."""
        if self.of_inputs or self.of_hessian:
            return "ffn", "heads"
        return ("blocks",) if self.of_states or self.of_effect else ("experts",)
