"""The kernel for SparseGPT's columns in Triton's interpreter, for `methods/test_columns.py`.

    python tests/interpreted_columns.py    prints a JSON object: case -> what differs

A process of its own, since Triton decides when it is first imported whether to interpret.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

from unittest import mock

import torch
from torch import Tensor

import stretches
from secateur.methods import columns, get
from secateur.sparsity import parse_pattern
from secateur.statistics import Need, Statistics

Difference = tuple[float, float]
"""The largest between numbers, and the share of weights whose fate is not the same."""


def difference(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Difference:
    """Between two (numbers, what stays)."""
    return (
        float((found[0] - wanted[0]).abs().max()),
        float((found[1] != wanted[1]).float().mean()),
    )


def stretch(pattern: str, width: int, rows: int) -> dict[str, Difference]:
    """The kernel against halves, on one stretch of columns."""
    one = stretches.make(pattern, width, rows)
    halves, kernel = one.copy(rows), one.copy(rows)
    columns.by_halves(halves)
    columns.by_kernel(kernel)
    return {
        f"{pattern} {width} x {rows} {name}": difference(
            (getattr(kernel, name), kernel.pruned), (getattr(halves, name), halves.pruned)
        )
        for name in ("current", "lost")
    }


def method(pattern: str, **parameters: object) -> Difference:
    """SparseGPT of two matrices by the kernel against the same without it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 72, generator=generator)
    inputs[:, 5] = 0
    weights = [torch.randn(rows, 72, generator=generator) for rows in (9, 14)]
    statistics = Statistics({Need.HESSIAN: inputs.T @ inputs}, sequences=1)
    sparsegpt = get("sparsegpt")
    assert sparsegpt.solve is not None
    found = []
    for runs in (True, False):
        with mock.patch.object(columns, "kernel_runs", return_value=runs):
            solution = sparsegpt.solve(
                weights, statistics, parse_pattern(pattern), sparsegpt.params(**parameters)
            )
        assert solution.notices == ()
        found.append((torch.cat([*solution.weights]), torch.cat([*solution.keep])))
    assert all(fault is None for fault in columns._FAULTS.values())
    assert columns._FAULTS  # the kernel was tried, and relied on
    return difference(*found)


def main() -> None:
    found: dict[str, Difference] = {}
    for case in stretches.CASES:
        found |= stretch(*case)
    for pattern in ("2:4", "4:8", "50%"):
        found[f"{pattern} sparsegpt"] = method(pattern, block_size=24)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
