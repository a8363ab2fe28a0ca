"""The small trained model that comes with the package: `builtin` wherever a model is asked for.

`tools/train_bundled.py` made it; its card lies beside it.
"""

from __future__ import annotations

from pathlib import Path

BUILTIN_MODEL = "builtin"
"""The name that stands for it."""
FOLDER = Path(__file__).parent / "llama-stdlib"
