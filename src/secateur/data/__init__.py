"""Text, tokens or images -> batches for a model, each with its protocol."""

from secateur.data.calibration import CHARACTER_LIMIT, Draw, Sampling, load_calibration
from secateur.data.heldout import load_heldout
from secateur.data.hub import HUB_TEXTS, Split
from secateur.data.images import ImageBatch, ImageProtocol, images_in_memory, load_images
from secateur.data.mixture import read_mixture
from secateur.data.overlap import overlaps
from secateur.data.selfwritten import SELF, self_written, with_more
from secateur.data.texts import Documents, read_documents
from secateur.data.tokens import Protocol, TokenBatch, token_sha256
from secateur.data.windows import Beginning, Tokenizer, adds_nothing

__all__ = [
    "CHARACTER_LIMIT",
    "HUB_TEXTS",
    "SELF",
    "Beginning",
    "Documents",
    "Draw",
    "ImageBatch",
    "ImageProtocol",
    "Protocol",
    "Sampling",
    "Split",
    "TokenBatch",
    "Tokenizer",
    "adds_nothing",
    "images_in_memory",
    "load_calibration",
    "load_heldout",
    "load_images",
    "overlaps",
    "read_documents",
    "read_mixture",
    "self_written",
    "token_sha256",
    "with_more",
]
