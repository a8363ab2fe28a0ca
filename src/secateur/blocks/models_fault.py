"""Tells in one line what goes wrong inside of a model's own code.

A configuration that lies, heads that do not match, an operation that a device lacks: every family
fails in its own way, with its own exceptions. Ours are let through as they are: what is raised in
this package, called by the model or not, is no fault of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from secateur.errors import ModelError, SecateurError, is_out_of_memory, no_memory, reason

_PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def models_fault(where: str) -> Iterator[None]:
    """Inside, a call of a model's own code, or a backward pass through it, and nothing else.

    Args:
        where: what is called: a class of models, or a block.

    Raises:
        ModelError: the code raises an exception of its own, or memory does not suffice for it.
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as fault:
        if is_out_of_memory(fault):
            raise no_memory(fault, ModelError, where) from fault
        if _is_ours(fault):
            raise
        raise ModelError(
            f"the model's own code fails ({reason(fault)})",
            where=where,
            wanted="a model that runs in transformers, and the config.json that belongs to it",
        ) from fault


def _is_ours(fault: Exception) -> bool:
    """Whether an exception comes out of this package: called by the model, or before it was."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(fault.__traceback__)]
    ours = [file.startswith(_PACKAGE) for file in files]
    called = ours.index(False) if False in ours else len(ours)
    return called == len(ours) or any(ours[called:])
