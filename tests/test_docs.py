"""What the pages say of the tree is what the tree is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from secateur.recipe import Recipe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"
OF_THEIR_TIME = ("log.md", "decisions")
"""Pages that tell of the past, and may name files that are gone."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in OF_THEIR_TIME),
]


def files_named(page: str) -> set[str]:
    """Every path of a Python file, or of a folder, that stands in back quotes or in a command."""
    return set(re.findall(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.py)\b", page))


def exists(name: str) -> bool:
    """Whether a file of that path lies in the package, or below the root of the project."""
    roots = (SOURCE, ROOT, ROOT / "src", ROOT / "tests", ROOT / "benchmarks", ROOT / "tools")
    return any((root / name).is_file() for root in roots)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    gone = sorted(name for name in files_named(page.read_text("utf-8")) if not exists(name))
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_import_that_a_page_shows_can_be_made(page: Path) -> None:
    shown = re.findall(r"^\s*from (secateur[\w.]*) import (\w+)", page.read_text("utf-8"), re.M)
    for module, name in shown:
        assert hasattr(importlib.import_module(module), name) or importlib.import_module(
            f"{module}.{name}"
        ), f"from {module} import {name}"


def test_the_recipe_in_the_readme_is_one() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    assert Recipe.build(yaml.safe_load(text)).method == "sparsegpt"
    stages = [part.partition("#")[2].strip() for part in text.splitlines() if "- {" in part]
    assert [stage.method for stage in Recipe.build(
        {"model": "-", "calibration": "c4", "stages": yaml.safe_load("\n".join(stages))}
    ).stages] == ["sparsegpt", "wanda++"]  # fmt: skip


def tree_of(page: str) -> dict[str, set[str]]:
    """Room -> its files, as the tree in the README has them; the root's files are under ""."""
    block = page.partition("src/secateur/\n")[2].partition("\n```")[0]
    rooms: dict[str, set[str]] = {"": set()}
    room = ""
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent < 2:
            break
        words = line.split()
        if indent == 2 and words[0].endswith("/"):
            room = words[0].rstrip("/")
            rooms[room] = set()
        elif indent == 2:
            rooms[""] |= {word for word in words if word.endswith(".py")}
        else:
            rooms[room] |= set(words)
    return rooms


def real_tree() -> dict[str, set[str]]:
    """The same, as it is."""
    rooms = {"": {path.name for path in SOURCE.glob("*.py")}}
    for folder in SOURCE.iterdir():
        if (folder / "__init__.py").is_file():
            rooms[folder.name] = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return rooms


def test_the_tree_in_the_readme_is_the_tree() -> None:
    told, real = tree_of((ROOT / "README.md").read_text("utf-8")), real_tree()
    assert told == real


def test_the_walk_through_the_house_enters_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert [room for room in real_tree() if room and f"`{room}/`" not in page] == []


def test_the_check_of_pages_finds_a_file_that_is_gone() -> None:
    assert files_named("`blocks/nowhere.py` and pipeline.py") == {
        "blocks/nowhere.py",
        "pipeline.py",
    }
    assert not exists("blocks/nowhere.py")
    assert exists("blocks/sweep.py")
