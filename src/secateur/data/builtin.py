"""The text that every Python installation carries: the built-in source for calibration and tests.

    training    the language reference behind `help()`, and the source of the standard library
    held out    a fixed list of its modules, which the bundled model has never seen

Left out are tests, tables, what is not the language's own, and modules too short to be a document.
Another version of Python has a slightly other library; the protocol of every batch records which
tokens came of it, so that numbers are only compared where they can be.
"""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path

from secateur.data.hub import Split

BUILTIN = "builtin"

HELD_OUT_MODULES = frozenset(
    {
        *("argparse", "asyncio.locks", "bisect", "calendar", "configparser", "contextlib", "csv"),
        *("difflib", "email.message", "fractions", "heapq", "html.parser", "http.cookies"),
        *("json.decoder", "logging.handlers", "pprint", "random", "sched", "shlex", "statistics"),
        *("tempfile", "textwrap", "timeit", "unittest.mock", "urllib.robotparser", "zipfile"),
    }
)
"""Modules that no training or calibration ever sees."""

LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo"),
        *("pydoc_data", "encodings", "ensurepip", "__phello__"),
    }
)
"""Folders of the library that are tests, tables, or not the language's own."""
SHORTEST = 1000
"""Characters of a document at least: what is shorter is hardly one."""


@functools.cache
def builtin_documents(split: Split) -> dict[str, str]:
    """The documents of one part by module or topic name, in sorted order."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    documents = {f"topic.{name}": text for name, text in topics.items()} if split == "train" else {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        name = ".".join(parts)
        held_out = name in HELD_OUT_MODULES or parts[0] in HELD_OUT_MODULES
        if (
            LEFT_OUT.isdisjoint(parts)
            and not name.startswith("_sysconfigdata")
            and held_out == (split == "test")
        ):
            documents[name] = path.read_text(encoding="utf-8", errors="replace")
    return {name: text for name, text in sorted(documents.items()) if len(text) >= SHORTEST}
