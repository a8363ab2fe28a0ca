"""How fast this machine multiplies matrices: the unit that the floor of a method is measured in.

square      products of two [side, side] matrices: the machine's rate
in place    the products of one block, [tokens, in] times [in, out], one after the other: what a
            forward pass can hope for
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flops import Shapes


@dataclass(frozen=True)
class Rates:
    """Operations per second.

    Attributes:
        square: of large square matrices.
        shaped: of the matrices of the model, at the number of rows that a batch has.
    """

    square: float
    shaped: float


def rates(
    shapes: Shapes,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
    least: float = 1.0,
    side: int = 2048,
) -> Rates:
    """Measure both; medians over at least three rounds and `least` seconds each.

    Args:
        shapes: the model whose matrices are multiplied.
        rows: tokens in a batch.
        device, dtype: where and in what.
        least: seconds for each of the two.
        side: of the square matrices.
    """
    a = torch.randn(side, side, device=device, dtype=dtype)
    square = 2.0 * side**3 / seconds(lambda: a @ a, device, least)
    pairs = [
        (
            torch.randn(rows, width, device=device, dtype=dtype),
            torch.randn(out, width, device=device, dtype=dtype),
        )
        for out, width in shapes.matrices.values()
    ]

    def block() -> None:
        for x, weight in pairs:
            torch.nn.functional.linear(x, weight)

    shaped = 2.0 * rows * shapes.weights / seconds(block, device, least)
    return Rates(square, shaped)


def seconds(work: Callable[[], object], device: torch.device, least: float) -> float:
    """Median seconds of some work, warmed up by one run."""
    found: list[float] = []
    once(work, device)
    began = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - began < least:
        found.append(once(work, device))
    return statistics.median(found)


def once(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, its work on an accelerator included."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
