"""Secateur prunes pretrained language models one block at a time, and proves what it did.

    import secateur

    run = secateur.prune("path/to/model", method="wanda++", pattern="2:4",
                         calibration="texts/", out="pruned")
    run.sparsity, run.mean_output_error
    secateur.evaluate("pruned", text="wikitext2", against="path/to/model").divergence
    secateur.check("pruned").complaint

`prune` also prunes a model that is already in memory, in place. api.py lists all doors.
"""

from __future__ import annotations

from secateur.api import (
    accelerate_inference,
    check,
    compare,
    evaluate,
    load,
    pack,
    prune,
    recover,
    report,
    unpack,
)
from secateur.errors import SecateurError
from secateur.record import RunRecord

__version__ = "0.1.0"
__all__ = [
    "RunRecord",
    "SecateurError",
    "__version__",
    "accelerate_inference",
    "check",
    "compare",
    "evaluate",
    "load",
    "pack",
    "prune",
    "recover",
    "report",
    "unpack",
]
