"""GGUF, the file that llama.cpp runs: what it says of a model and its tokenizer, in both ways.

No file is written here and no weight is read: `export/to_gguf.py` writes one from a model folder,
`checkpoint/from_gguf.py` makes a model folder of one.
"""

from secateur.gguf.header import Header, read_header
from secateur.gguf.kinds import KINDS, GgufKind, kind_of
from secateur.gguf.vocabulary import Vocabulary, read_vocabulary

__all__ = [
    "KINDS",
    "GgufKind",
    "Header",
    "Vocabulary",
    "kind_of",
    "read_header",
    "read_vocabulary",
]
