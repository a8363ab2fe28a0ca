"""Stretches of columns as SparseGPT has them: random weights, an input that is always zero."""

from __future__ import annotations

import torch

from secateur.methods.columns import Columns
from secateur.sparsity import Unstructured, parse_pattern

CASES = [
    ("2:4", 32, 5),
    ("2:4", 12, 1),
    ("4:8", 40, 33),
    ("3:6", 36, 9),
    ("50%", 50, 20),
]
"""(pattern, columns, rows): none but the first fills the powers of two that a kernel works on."""


def make(pattern: str, width: int, rows: int) -> Columns:
    """Columns before they are solved; an unstructured mask is chosen at random."""
    generator = torch.Generator().manual_seed(width)
    inputs = torch.randn(2 * width, width, generator=generator)
    factor = torch.linalg.cholesky(inputs.T @ inputs / len(inputs), upper=True)
    factor = torch.linalg.inv(factor).T.contiguous().T  # as a solver returns it: by columns
    scale = torch.rand(width, generator=generator) + 0.1
    scale[3] = torch.inf
    current = torch.randn(width, rows, generator=generator)
    chosen = parse_pattern(pattern)
    goes = torch.zeros_like(current)
    if isinstance(chosen, Unstructured):
        goes = (torch.rand(width, rows, generator=generator) < chosen.ratio).float()
    unit = factor / factor.diagonal()[:, None]
    return Columns(current, goes, torch.empty_like(current), unit, scale, chosen)
