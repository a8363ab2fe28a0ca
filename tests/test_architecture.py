"""The shape of the source: imports flow one way, files are short, names say what is inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
PACKAGE = SOURCE.name

ORDER = [
    "errors",
    "progress",
    "machine",
    "bundled",
    "sparsity",
    "packing",
    "statistics",
    "methods",
    "data",
    "checkpoint",
    "recipe",
    "blocks",
    "evaluation",
    "record",
    "pruning",
    "recovery",
    "export",
    "inference",
    "comparison",
    "reporting",
    "api",
    "__init__",
    "cli",
    "__main__",
]
"""Rooms and files of the package; each imports only from itself and from those before it."""
LOOSE = {"__init__", "__main__", "api", "errors", "progress"}
"""Files that lie in no room."""

VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "shared", "base_utils"}
MOST_LINES = 300


def unit_of(path: Path, root: Path) -> str:
    """The member of `ORDER` that a file belongs to: its first folder, or its own name."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_units(tree: ast.Module, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and unit of everything that a file imports from its own package.

    Args:
        tree: the file.
        parts: its path within the package, such as ("blocks", "sweep.py").
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = [PACKAGE, *parts][: -node.level]
            base = ".".join([*folder, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == PACKAGE:
                yield node.lineno, rest[0] if rest and rest[0] in ORDER else "__init__"


def violations(root: Path) -> list[str]:
    """Every import under `root` that runs against `ORDER`, and every unit that is not in it."""
    rank = {unit: place for place, unit in enumerate(ORDER)}
    found = []
    for path in sorted(root.rglob("*.py")):
        unit, parts = unit_of(path, root), path.relative_to(root).parts
        if unit not in rank:
            found.append(f"{path}:1 {unit} has no place in the order")
            continue
        for line, target in imported_units(ast.parse(path.read_text(encoding="utf-8")), parts):
            if rank[target] > rank[unit]:
                found.append(f"{path}:{line} {unit} imports {target}, which comes after it")
    return found


def test_imports_flow_one_way() -> None:
    assert violations(SOURCE) == []


def test_every_unit_of_the_order_exists() -> None:
    there = {unit_of(path, SOURCE) for path in SOURCE.rglob("*.py")}
    assert set(ORDER) == there


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("sparsity/mask.py", "import torch\nfrom secateur.blocks import sweep", ":2 sparsity"),
        ("sparsity/mask.py", "from secateur import pruning", ":1 sparsity imports pruning"),
        ("sparsity/mask.py", "import secateur.cli", ":1 sparsity imports cli"),
        ("sparsity/mask.py", "from ..methods.base import get", ":1 sparsity imports methods"),
        ("sparsity/mask.py", "from .. import data", ":1 sparsity imports data"),
        ("sparsity/mask.py", "from secateur import prune", ":1 sparsity imports __init__"),
        ("recipe/plan.py", "from ..pruning import estimate", ":1 recipe imports pruning"),
        ("recipe/plan.py", "from .. import pruning", ":1 recipe imports pruning"),
        ("recipe/plan.py", "def f():\n    import secateur.api", ":2 recipe imports api"),
        ("errors.py", "if TYPE_CHECKING:\n    from secateur.reporting import Quiet", ":2 errors"),
        ("novelty/new.py", "", ":1 novelty has no place"),
        ("novelty.py", "", ":1 novelty has no place"),
    ],
)
def test_the_check_catches_a_planted_violation(
    tmp_path: Path, file: str, code: str, complaint: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    (found,) = violations(tmp_path)
    assert found.startswith(f"{path}{complaint}")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("sparsity/mask.py", "from secateur.sparsity.pattern import NofM"),
        ("sparsity/mask.py", "from .pattern import NofM\nfrom . import audit"),
        ("blocks/sweep.py", "from secateur.errors import SecateurError\nimport torch.nn"),
        ("cli/prune.py", "from secateur import methods, pruning"),
    ],
)
def test_the_check_lets_a_good_import_pass(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    assert violations(tmp_path) == []


def test_only_the_doors_lie_in_no_room() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == LOOSE


def test_no_file_has_a_name_that_says_nothing() -> None:
    names = [path for path in SOURCE.rglob("*") if path.stem in VAGUE]
    assert names == []


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text)), "no docstring at the head of the file"


def test_the_library_does_not_load_the_command() -> None:
    """`import secateur` must not cost what only the command needs."""
    imported = {
        name.split(".")[0]
        for path in SOURCE.rglob("*.py")
        if unit_of(path, SOURCE) not in ("cli", "__main__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert not imported & {"typer", "click"}
