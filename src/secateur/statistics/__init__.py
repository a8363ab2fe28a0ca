"""Accumulators: feed batches, read one tensor. All are sums or means over
sequences, so that processes can join theirs."""

from secateur.statistics.bundle import (
    GRADIENTS,
    Need,
    Statistics,
    all_finite,
    check_finite,
    uninformed,
)
from secateur.statistics.gradient import GradientNorm, Order
from secateur.statistics.hessian import Hessian
from secateur.statistics.input_norm import InputNorm

__all__ = [
    "GRADIENTS",
    "GradientNorm",
    "Hessian",
    "InputNorm",
    "Need",
    "Order",
    "Statistics",
    "all_finite",
    "check_finite",
    "uninformed",
]
