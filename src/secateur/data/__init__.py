"""Text or tokens -> batches for a model: calibration and held-out, each with its protocol."""

from secateur.data.calibration import CHARACTER_LIMIT, Sampling, load_calibration
from secateur.data.heldout import load_heldout
from secateur.data.hub import HUB_TEXTS, Split
from secateur.data.selfwritten import SELF, self_written
from secateur.data.texts import Documents, read_documents
from secateur.data.tokens import Protocol, TokenBatch, token_sha256

__all__ = [
    "CHARACTER_LIMIT",
    "HUB_TEXTS",
    "SELF",
    "Documents",
    "Protocol",
    "Sampling",
    "Split",
    "TokenBatch",
    "load_calibration",
    "load_heldout",
    "read_documents",
    "self_written",
    "token_sha256",
]
