"""A sparse model that is really smaller: packed on disk, and unpacked again; or one GGUF file."""

from secateur.export.folders import Packing, pack, unpack
from secateur.export.gguf_types import GgufType
from secateur.export.to_gguf import pack_gguf

__all__ = ["GgufType", "Packing", "pack", "pack_gguf", "unpack"]
