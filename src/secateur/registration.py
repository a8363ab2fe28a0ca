"""Makes `import secateur` enough for transformers to load packed folders, and quick all the same.

The registry is among transformers' code for models, which takes seconds to load. So the format is
registered as soon as that code is loaded, by whomever: nothing loads a model without it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODELS = "transformers.modeling_utils"
"""The module without which transformers loads no model; the registry is loaded before its end."""
_PACKED = "secateur.checkpoint.from_pretrained"
"""The module that registers the format when it is loaded."""


class _AfterModels(MetaPathFinder):
    """Finds `_MODELS` where Python does, and has `_PACKED` loaded after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODELS:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None:
            execute = found.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(_PACKED)

            found.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return found


def register_packed() -> None:
    """Let transformers load packed folders: now if it can load models, else as soon as it can."""
    if _MODELS in sys.modules:
        importlib.import_module(_PACKED)
    else:
        sys.meta_path.insert(0, _AfterModels())
