"""Secateur prunes pretrained language models one block at a time, and proves what it did.

    import secateur

    run = secateur.prune("path/to/model", method="wanda++", pattern="2:4",
                         calibration="texts/", out="pruned")
    run.sparsity, run.mean_output_error
    secateur.evaluate("pruned", text="wikitext2", against="path/to/model").divergence
    secateur.check("pruned").complaint

`prune` also prunes a model that is already in memory, in place. api.py lists all doors; they are
loaded when one is first asked for, so that the command can answer Ctrl-C while torch loads.
After the import `AutoModelForCausalLM.from_pretrained` loads packed folders too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.errors import SecateurError
from secateur.registration import register_packed

if TYPE_CHECKING:
    from secateur.api import (
        accelerate_inference,
        check,
        cliff,
        compare,
        evaluate,
        load,
        pack,
        prune,
        recover,
        report,
        unpack,
    )
    from secateur.record import RunRecord

__version__ = "0.1.0"
__all__ = [
    "RunRecord",
    "SecateurError",
    "__version__",
    "accelerate_inference",
    "check",
    "cliff",
    "compare",
    "evaluate",
    "load",
    "pack",
    "pack_gguf",
    "prune",
    "recover",
    "report",
    "unpack",
]

register_packed()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from secateur import api

    globals()[name] = getattr(api, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
