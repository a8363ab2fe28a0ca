"""What `pyproject.toml` declares is what the source imports, and the other way round."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import secateur

ROOT = Path(__file__).parents[1]
SOURCE = Path(secateur.__file__).parent

PACKAGE_OF = {"PIL": "pillow", "yaml": "pyyaml"}
"""Packages whose modules have another name, by module."""
COMES_WITH_ANOTHER = {"triton": "torch for a GPU brings its own, of the version it was built for"}
"""Imported packages that no user need ask for, with the package that brings them."""


def name_of(requirement: str) -> str:
    """The name of a package as it is compared: `lm_eval>=0.4` is `lm-eval`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;!~ ]", requirement)[0]).lower()


def third_party(tree: ast.Module) -> set[str]:
    """The packages of others that a file imports, as they are declared."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.split(".")[0])
    others = modules - set(sys.stdlib_module_names) - {"secateur"}
    return {name_of(PACKAGE_OF.get(module, module)) for module in others}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        pytest.skip("the tests do not lie beside pyproject.toml")
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


@pytest.fixture(scope="module")
def imported() -> set[str]:
    files = SOURCE.rglob("*.py")
    return set().union(
        *(third_party(ast.parse(file.read_text(encoding="utf-8"))) for file in files)
    )


@pytest.fixture(scope="module")
def declared(project: dict[str, Any]) -> set[str]:
    """What a user installs: the dependencies, and the extras that are not for development."""
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in ("quantize", "tasks", "vision"))]
    return {name_of(line) for lines in lists for line in lines}


def test_all_that_is_imported_is_declared(imported: set[str], declared: set[str]) -> None:
    assert imported - declared - set(COMES_WITH_ANOTHER) == set()


def test_all_that_is_declared_is_imported(imported: set[str], declared: set[str]) -> None:
    assert declared - imported == set()


def test_every_requirement_has_a_lower_bound(project: dict[str, Any]) -> None:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = [line for each in lists for line in each if not line.startswith("secateur[")]
    assert [line for line in lines if ">=" not in line] == []


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import os\nfrom secateur.errors import SecateurError", set()),
        ("from . import mask", set()),
        ("def f():\n    import yaml\n    from PIL import Image", {"pyyaml", "pillow"}),
        ("import huggingface_hub.errors", {"huggingface-hub"}),
    ],
)
def test_the_check_sees_what_a_file_imports(code: str, packages: set[str]) -> None:
    assert third_party(ast.parse(code)) == packages
