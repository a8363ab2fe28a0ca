"""Tensors only: a pattern, the weights that it keeps, and the proof that it was done."""

from secateur.sparsity.audit import MatrixAudit, audit
from secateur.sparsity.mask import (
    Competition,
    keep_highest,
    keep_in_places,
    keep_mask,
    without_dropped,
)
from secateur.sparsity.pattern import (
    IN_FULL,
    NOTHING_PRUNED,
    UNITS,
    Dense,
    NofM,
    Pattern,
    Structures,
    Unstructured,
    parse_pattern,
)
from secateur.sparsity.selection import SELECTION_KEYS, Selection, read_selection

__all__ = [
    "IN_FULL",
    "NOTHING_PRUNED",
    "SELECTION_KEYS",
    "UNITS",
    "Competition",
    "Dense",
    "MatrixAudit",
    "NofM",
    "Pattern",
    "Selection",
    "Structures",
    "Unstructured",
    "audit",
    "keep_highest",
    "keep_in_places",
    "keep_mask",
    "parse_pattern",
    "read_selection",
    "without_dropped",
]
