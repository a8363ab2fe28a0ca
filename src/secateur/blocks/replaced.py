"""Attributes of a module replaced for a while, and put back as the module had them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Inside, an instance has other attributes than its class gives it, or than it has itself.

    What it had of its own, such as a `forward` that somebody patched, is there again afterwards,
    and what it did not have is not.

    Args:
        module: the instance; its class is not touched.
        attributes: by name, the values that it has inside; no parameters, buffers or modules.
    """
    instance = vars(module)
    before = {name: instance[name] for name in attributes if name in instance}
    try:
        instance.update(attributes)
        yield
    finally:
        for name in attributes:
            instance.pop(name, None)
        instance.update(before)
