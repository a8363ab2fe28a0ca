"""Says which files beside the weights belong to a model: they come along with a result.

Kinds are listed that do belong, and nothing else comes: no code, whatever its spelling, no weights
but those that were pruned, nothing that a training left behind.

    configuration, tokenizer, processor   .json, .jinja, .txt, .model, .tiktoken, ...
    licences                              LICENCE, license.txt, NOTICE, USE_POLICY.md, ...
    sub-folders                           those of a tokenizer or processor, such as
                                          additional_chat_templates/, and of licences
    code                                  .py of the folder itself, only where it is trusted
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from secateur.checkpoint.weight_files import CONFIG, looks_like_weights
from secateur.errors import CheckpointError

_OF_WEIGHTS = (CONFIG, ".safetensors", ".index.json")
"""Ends of the names of the configuration, of weights and of their indices."""
_KINDS = re.compile(
    r".+\.(json|jinja2?|txt|model|tiktoken|vocab|merges|bpe|codes|spm|ya?ml|model\.v\d+)"
)
"""Names of configurations, tokenizers and processors, in small letters."""
_LICENCE = re.compile(
    r"(.*[-_. ])?((un)?licen[cs]es?|copying|copyright|notices?|patents|terms|legal|eula|agreement"
    r"|attribution|disclaimer|(open)?rail|us(e|age)[-_ ]?(policy|guidelines?|guide|restrictions?)"
    r"|(acceptable|prohibited|permitted|responsible)[-_ ]?use)([-_. ].*)?"
)
"""Names of licences and of what goes with them, in small letters, without their end."""
_OF_TEXT = frozenset(
    ("", ".md", ".txt", ".rst", ".pdf", ".html", ".rtf", ".0", ".apache", ".mit", ".bsd", ".gpl",
     ".lesser", ".llama", ".gemma", ".code", ".data", ".weights")
)  # fmt: skip
"""Ends of the names of licences; .0 is that of LICENSE-2.0."""
_FOLDERS = re.compile(
    r"(?!\.).*(token|processor|template|extractor|licen[cs]e).*|legal|notices?|\d+_[a-z]+"
)
"""Sub-folders that come along, in small letters; 1_Pooling is one of a model of embeddings."""
_NEVER = re.compile(
    r"run\.json|adapter_.*|trainer_state\.json|training_args\..*|.*_results\.json|requirements.*"
    r"|readme.*"
)
"""Of the kinds above, names of what is no part of the model that is written, in small letters."""


def files_beside(source: Path, *, with_code: bool) -> list[Path]:
    """The files that come along with a result, relative to the folder of the model.

    Neither they nor the weights may be links to somewhere else.

    Args:
        source: the folder.
        with_code: whether the code in it is trusted, and comes along.

    Raises:
        CheckpointError: one of them is a link to somewhere else.
    """
    names = list(_names(source, with_code))
    weights = (name for name in sorted(os.listdir(source)) if name.endswith(_OF_WEIGHTS))
    _refuse_links(source, [*map(Path, weights), *names])
    return [name for name in names if (source / name).is_file()]  # folders that are links stay out


def _refuse_links(source: Path, names: list[Path]) -> None:
    """Raise `CheckpointError` if one of the files of a folder is a link to somewhere else.

    A folder from a stranger could have a link to a private file of yours, which would then be
    published with the result. Links into the hub's own cache are what its snapshots are made of.
    """
    for name in names:
        if not leads_inside(source, name):
            raise CheckpointError(
                f"{name.as_posix()} is a link to {(source / name).resolve()}",
                where=source,
                wanted="files, or links within the folder",
                hint="a copy of that file in place of the link",
            )


def leads_inside(folder: Path, name: Path) -> bool:
    """Whether a relative name leads to what is in a model folder, or in the hub's cache of it."""
    try:
        target, home = (folder / name).resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a null byte
        return False
    blobs = home.parent.parent / "blobs"
    return any(target != there and target.is_relative_to(there) for there in (home, blobs))


def belongs(name: str, *, with_code: bool) -> bool:
    """Whether a file belongs to a model, by its name relative to the folder, with slashes."""
    *folders, file = name.lower().split("/")
    if folders and not _FOLDERS.fullmatch(folders[0]):
        return False
    if any(part.startswith(".") for part in (*folders, file)):
        return False
    if with_code and not folders and name.endswith(".py"):
        return True
    if _NEVER.fullmatch(file) or looks_like_weights(file):
        return False
    stem, dot, end = file.rpartition(".")
    kind, stem = (dot + end, stem) if dot else ("", file)
    licence = kind in _OF_TEXT and _LICENCE.fullmatch(stem) is not None
    return licence or _KINDS.fullmatch(file) is not None


def _names(source: Path, with_code: bool) -> Iterator[Path]:
    """The relative names of the files that belong to the model, and of folders that are links."""
    for at, folders, files in os.walk(source):
        below = Path(at).relative_to(source)
        if below == Path():
            folders[:] = [name for name in folders if _FOLDERS.fullmatch(name.lower())]
        folders.sort()
        yield from (below / name for name in folders if (Path(at) / name).is_symlink())
        for name in sorted(files):
            path = below / name
            if belongs(path.as_posix(), with_code=with_code) and (source / path).is_file():
                yield path
