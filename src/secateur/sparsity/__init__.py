"""Tensors only: the pattern wanted, the weights it keeps, and the proof that it was done."""

from secateur.sparsity.audit import MatrixAudit, audit
from secateur.sparsity.choice import Choice, read_choice
from secateur.sparsity.mask import Compare, keep_highest, keep_mask
from secateur.sparsity.pattern import NofM, Pattern, Unstructured, parse_pattern

__all__ = [
    "Choice",
    "Compare",
    "MatrixAudit",
    "NofM",
    "Pattern",
    "Unstructured",
    "audit",
    "keep_highest",
    "keep_mask",
    "parse_pattern",
    "read_choice",
]
