"""A sparse matrix in fewer bytes: exact, without a model or a file."""

from secateur.packing.matrix import (
    PACKABLE,
    Bitmask,
    PackedForm,
    find_form,
    pack_matrix,
    unpack_matrix,
)

__all__ = ["PACKABLE", "Bitmask", "PackedForm", "find_form", "pack_matrix", "unpack_matrix"]
