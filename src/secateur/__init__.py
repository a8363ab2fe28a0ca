"""Secateur prunes pretrained language models one block at a time, and proves what it did.

    import secateur

    run = secateur.prune("path/to/model", method="wanda++", pattern="2:4",
                         calibration="texts/", out="pruned")
    run.sparsity, run.mean_output_error

The same function prunes a model that is already in memory, in place.
"""

from __future__ import annotations

from secateur.api import load, prune
from secateur.errors import SecateurError
from secateur.export import pack, unpack
from secateur.inference import accelerate_inference
from secateur.record import RunRecord

__version__ = "0.1.0"
__all__ = [
    "RunRecord",
    "SecateurError",
    "__version__",
    "accelerate_inference",
    "load",
    "pack",
    "prune",
    "unpack",
]
