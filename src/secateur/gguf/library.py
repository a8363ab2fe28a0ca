"""The `gguf` library of llama.cpp's makers, which is an extra, and the values in its files."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from secateur.errors import SecateurError

GGUF_SUFFIX = ".gguf"
"""Ending of the files' names."""
Value = int | float | bool | str | list[str] | list[int] | list[float] | list[bool]
"""What stands under a key of a GGUF file; which of its number types it has, the writer says."""
Metadata = Mapping[str, Value]
"""The values of a GGUF file by their keys."""


def library() -> ModuleType:
    """The library.

    Raises:
        SecateurError: it is not installed.
    """
    try:
        import gguf
    except ImportError as fault:
        raise SecateurError(
            "GGUF files need the gguf library", hint="pip install 'secateur[quantize]'"
        ) from fault
    return gguf
