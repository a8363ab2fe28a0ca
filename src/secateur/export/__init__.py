"""A sparse model that is really smaller: packed on disk, and unpacked again."""

from secateur.export.folders import Packing, pack, unpack

__all__ = ["Packing", "pack", "unpack"]
