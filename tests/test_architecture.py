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
    "machine",
    "progress",
    "bundled",
    "sparsity",
    "packing",
    "statistics",
    "methods",
    "quantization",
    "recipe",
    "data",
    "gguf",
    "checkpoint",
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
    "registration",
    "__init__",
    "cli",
    "__main__",
]
"""Rooms and files of the package; each imports only from itself and from those before it."""
LOOSE = {"__init__", "__main__", "api", "errors", "progress", "registration"}
"""Files that lie in no room."""

VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "shared", "base_utils"}
MOST_LINES = 300
MOST_PARAMETERS = 6
"""Of a function, `self` and `cls` not counted; `*args` and `**kwargs` count one each."""
MOST_EXCEPTIONS = 10
"""Functions with more parameters than that."""

MORE_PARAMETERS = {
    "api.py:prune": "a door: everything but the model is an option with a name",
    "cli/pack.py:pack": "a command: every option is a parameter",
    "inference/kernel.py:_read_groups": "part of a kernel: pointers, shapes and block sizes",
    "inference/kernel.py:_multiply": "a kernel takes pointers, strides and block sizes one by one",
    "inference/kernel.py:_unpack": "a kernel takes pointers, strides and block sizes one by one",
    "methods/columns_kernel.py:_prune_columns": "a kernel takes pointers and shapes one by one",
}
"""Functions of the package that may take more parameters, and why."""

OF_A_DOOR = {"pack", "unpack", "bench", "demo", "cliff"}
"""What a command shares its name with is a door; these are doors that lie in their room."""


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


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function takes; `self` and `cls` are not counted."""
    arguments = function.args
    names = [
        argument.arg
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    ]
    named = names[1:] if names[:1] in (["self"], ["cls"]) else names
    return len(named) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Name, such as "Class.method", and number of parameters of every function of a file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside + child.name, parameters(child)
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from functions(child, f"{inside}{child.name}." if named else inside)


def with_too_many_parameters(root: Path) -> dict[str, int]:
    """The functions under `root` with more than six parameters, as "room/file.py:name"."""
    return {
        f"{path.relative_to(root).as_posix()}:{name}": count
        for path in sorted(root.rglob("*.py"))
        for name, count in functions(ast.parse(path.read_text(encoding="utf-8")))
        if count > MOST_PARAMETERS
    }


def public_definitions(root: Path) -> dict[str, list[str]]:
    """Name -> the files that define it, of all classes, functions and constants without a "_"."""
    defined: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {node.name}
            elif isinstance(node, ast.Assign):
                names = {part.id for target in node.targets for part in ast.walk(target)
                         if isinstance(part, ast.Name)}  # fmt: skip
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = {node.target.id}
            else:
                continue
            for name in sorted(names):
                files = defined.setdefault(name, [])
                if not name.startswith("_") and path.relative_to(root).as_posix() not in files:
                    files.append(path.relative_to(root).as_posix())  # once: it may be overloaded
    return defined


def test_no_two_public_definitions_share_a_name() -> None:
    """But for a door and its command, which are one thing seen from two sides."""
    defined = public_definitions(SOURCE)
    doors = {name for name, files in defined.items() if "api.py" in files} | OF_A_DOOR
    shared = {
        name: files
        for name, all_files in defined.items()
        if len(files := [f for f in all_files if not (name in doors and f.startswith("cli/"))]) > 1
    }
    assert shared == {}


def test_functions_take_few_parameters() -> None:
    many = with_too_many_parameters(SOURCE)
    assert {name: n for name, n in many.items() if name not in MORE_PARAMETERS} == {}
    assert MORE_PARAMETERS.keys() <= many.keys(), "an exception that is none any more"
    assert len(MORE_PARAMETERS) <= MOST_EXCEPTIONS


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(a, b, c, d, e, f, g): ...", "f"),
        ("async def f(a, b, c, d, e, f, g): ...", "f"),
        ("def f(a, /, b, c, *, d, e, f, g=1): ...", "f"),
        ("def f(a, b, c, d, e, *args, **options): ...", "f"),
        ("class C:\n    def f(self, a, b, c, d, e, f, g): ...", "C.f"),
        ("def outer():\n    if True:\n        def f(a, b, c, d, e, f, g): ...", "outer.f"),
    ],
)
def test_a_seventh_parameter_is_noticed(tmp_path: Path, code: str, name: str) -> None:
    (tmp_path / "new.py").write_text(code, encoding="utf-8")
    assert with_too_many_parameters(tmp_path) == {f"new.py:{name}": 7}


@pytest.mark.parametrize(
    "code",
    [
        "def f(a, b, c, d, *args, **options): ...",
        "class C:\n    def f(self, a, b, c, d, e, f): ...",
        "class C:\n    @classmethod\n    def f(cls, a, b, c, d, e, f): ...",
    ],
)
def test_six_parameters_pass(tmp_path: Path, code: str) -> None:
    (tmp_path / "new.py").write_text(code, encoding="utf-8")
    assert with_too_many_parameters(tmp_path) == {}


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


def calls_of(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Every call in a file: the last name of what is called, and all names in its arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = str(getattr(called, "attr", None) or getattr(called, "id", ""))
            inside = [part for argument in node.args for part in ast.walk(argument)]
            names = [str(getattr(part, "attr", None) or getattr(part, "id", "")) for part in inside]
            yield name, names


def askers_of_kind(root: Path) -> list[str]:
    """Files outside of checkpoint/ that ask whether an opened model is streamed or resident."""
    kinds = {"StreamedModel", "ResidentModel"}
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if unit_of(path, root) != "checkpoint"
        for name, names in calls_of(ast.parse(path.read_text(encoding="utf-8")))
        if name in ("isinstance", "issubclass") and kinds & set(names)
    ]


def test_nobody_asks_which_kind_of_opened_model_it_has(tmp_path: Path) -> None:
    assert askers_of_kind(SOURCE) == []
    (tmp_path / "blocks").mkdir()
    planted = "ok = isinstance(model, int | checkpoint.StreamedModel)\n"
    (tmp_path / "blocks" / "sweep.py").write_text(planted, encoding="utf-8")
    assert askers_of_kind(tmp_path) == ["blocks/sweep.py"]


def test_whole_models_are_loaded_in_one_place() -> None:
    """All other `from_pretrained` are of configurations, tokenizers and image processors."""
    loaders = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
        if getattr(node.value, "id", "")
        not in ("AutoConfig", "GenerationConfig", "AutoTokenizer", "AutoImageProcessor")
    }
    assert loaders == {"checkpoint/open.py"}


READERS_OF_TENSORS = {"data/token_files.py", "blocks/full_gradients.py"}
"""Files outside of checkpoint/ that open safetensors: tokens and hidden states; no model."""


def test_only_checkpoint_opens_files_of_models() -> None:
    readers = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if unit_of(path, SOURCE) != "checkpoint"
        for name, _ in calls_of(ast.parse(path.read_text(encoding="utf-8")))
        if name in ("safe_open", "load_file", "save_file", "save_pretrained")
    }
    assert readers == READERS_OF_TENSORS
