"""Tensors only: the pattern wanted, the weights it keeps, and the proof that it was done."""

from secateur.sparsity.audit import MatrixAudit, audit
from secateur.sparsity.choice import Choice, read_choice
from secateur.sparsity.mask import Compare, keep_highest, keep_in_places, keep_mask, without_dropped
from secateur.sparsity.packing import Bitmask, Form, find_form, pack_matrix, unpack_matrix
from secateur.sparsity.pattern import NofM, Pattern, Unstructured, parse_pattern

__all__ = [
    "Bitmask",
    "Choice",
    "Compare",
    "Form",
    "MatrixAudit",
    "NofM",
    "Pattern",
    "Unstructured",
    "audit",
    "find_form",
    "keep_highest",
    "keep_in_places",
    "keep_mask",
    "pack_matrix",
    "parse_pattern",
    "read_choice",
    "unpack_matrix",
    "without_dropped",
]
