"""A recipe as people write it: a YAML file of plain values, numbers where they look like it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from secateur.errors import RecipeError
from secateur.machine.limits import MOST_RECIPE_BYTES, MOST_RECIPE_DEPTH, at_most
from secateur.recipe.recipe import Recipe
from secateur.recipe.wording import briefly


def read_yaml(path: Path) -> dict[str, Any]:
    """The values in a recipe file, unchecked.

    Raises:
        RecipeError: it is missing, not YAML, or not a mapping.
    """
    wanted = "keys and values, such as method: wanda"
    try:
        at_most(MOST_RECIPE_BYTES, path.stat().st_size, "bytes", where=path, fault=RecipeError)
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as fault:
        raise RecipeError("no such recipe file", where=path, wanted="a YAML file") from fault
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:
        raise RecipeError(f"not a YAML file ({fault})", where=path, wanted=wanted) from fault
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"the file holds {kind}", where=path, wanted=wanted)
    if values.get("trust_remote_code"):
        raise RecipeError(
            "a recipe file cannot trust code", where=path, hint="--trust-remote-code, if you do"
        )
    return {str(key): value for key, value in values.items()}


def read_recipe(path: Path, options: Mapping[str, Any]) -> Recipe:
    """The recipe in a file, options over it: of a mapping, each entry over its namesake.

    Raises:
        RecipeError: the file cannot be read, or something in it or the options is wrong.
    """
    values = read_yaml(path)
    for name, value in options.items():
        below = values.get(name) or {}
        if not isinstance(value, Mapping):
            values[name] = value
        elif isinstance(below, dict):  # if not, the recipe says what is wrong with it
            values[name] = {**value, **{key: below[key] for key in below if key not in value}}
    return Recipe.build(values, origin=f"{path} and the options")


def read_value(text: str) -> Any:
    """A value as it would stand in a recipe file: "3" is a number, "true" a truth, "l1" a word."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError, yaml.YAMLError):
        return text


class _Loader(yaml.SafeLoader):
    """Plain values only, each written out, each key once; of numbers those that look like it.

    YAML 1.1 reads 2:4 as 124 (to base 60), 010 as 8, and 3e-7, which has no dot, as a word. Some
    hundred bytes of aliases unfold to more values than any memory holds.
    """

    _depth = 0

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and form
        first: [(tag, form) for tag, form in forms if not tag.endswith((":int", ":float"))]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value, unless it is an alias, may become one, or lies too deep."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            self._refuse("anchors and aliases are not read: write every value out", event)
        if self._depth == MOST_RECIPE_DEPTH:
            self._refuse(f"more than {MOST_RECIPE_DEPTH} levels of lists and mappings", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping, unless a key stands twice: the last would win in silence."""
        names = (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, times in Counter(names).items():
            if times > 1:
                self._refuse(f"{briefly(name)} stands twice", node)
        return super().construct_mapping(node, deep)

    def _refuse(self, why: str, there: Any) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, why, there.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[+-]?(0|[1-9]\d*)$"), list("+-0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?|[+-]?\.inf|\.nan)$"),
    list("+-.0123456789"),
)
