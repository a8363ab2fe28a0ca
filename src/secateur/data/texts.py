"""A source named on the command line -> its documents, with where they came from.

    a path to .txt, .md      one document; a form feed separates several
    a path to .jsonl         one document per line, in the field "text"
    a path to .parquet       one document per row, in the column "text"
    a path to a folder       every such file below it, in sorted order, hidden ones left out
    c4, wikitext2            the hub data sets of the pruning papers (see hub.py)
    builtin                  the text that every Python installation carries (see builtin.py)

A short name comes before a path, so that one command means the same on every machine; write `./c4`
for a folder of that name. Documents stay as they are, empty records included: WikiText-2 is
published as lines, and the papers join all of them, blank ones too.
"""

from __future__ import annotations

import difflib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.data.builtin import BUILTIN, builtin_documents
from secateur.data.files import READERS, read_file
from secateur.data.hub import HUB_TEXTS, Split, read_hub
from secateur.errors import DataError, closest

TextKind = Literal["text", "jsonl", "parquet", "folder", "hub", "builtin"]

KINDS: dict[str, TextKind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Documents:
    """The documents of one source.

    Args:
        texts: the documents in the order of the source. A tuple, or for a hub data set its memory
            mapped column, so that a shard of C4 need not be held in memory.
        kind: what the source turned out to be.
        origin: provenance for the run record: the path and the number of files read, or the
            repository, configuration, split and data file; and the number of documents.
    """

    texts: Sequence[str]
    kind: TextKind
    origin: dict[str, str]


def read_documents(source: str, split: Split) -> Documents:
    """All documents of a file, a folder, a hub data set or the built-in text.

    Args:
        source: a path or a short name, as listed at the head of this module.
        split: which part of what a short name stands for; a path is read whole whatever the split.

    Raises:
        DataError: nothing is called that, or it cannot be read, or it holds no text.
    """
    if source in HUB_TEXTS:
        texts, origin = read_hub(source, split)
        return Documents(texts, "hub", origin)
    if source == BUILTIN:
        documents = builtin_documents(split)
        origin = {
            "text": f"standard library of Python {platform.python_version()}",
            "split": split,
            "documents": str(len(documents)),
        }
        return Documents(tuple(documents.values()), "builtin", origin)
    path = locate_text(source)
    if path.is_dir():
        return _read_folder(source, path)
    texts = read_file(path)
    if not any(map(str.strip, texts)):
        raise DataError("no text", where=source, wanted="at least one document")
    return _local(source, KINDS[path.suffix.lower()], texts, files=1)


def locate_text(source: str) -> Path:
    """The existing file or folder that `source` names.

    Raises:
        DataError: there is none.
    """
    path = Path(source)
    try:
        path = path.expanduser()
        if source.strip() and (path.is_file() or path.is_dir()):
            return path
    except (OSError, RuntimeError) as error:  # too long a name, an unknown user after "~"
        reason = getattr(error, "strerror", None) or str(error)
        brief = source if len(source) <= 80 else f"{source[:80]}..."
        raise DataError(
            f"{brief!r} cannot be opened ({reason})", wanted="a path or the name of a data set"
        ) from error
    raise DataError(
        f"no file, folder or data set is called {source!r}",
        wanted=f"a path or {closest(source, [*HUB_TEXTS, BUILTIN])}",
        hint=_near_path(path),
    )


def _near_path(path: Path) -> str | None:
    """The entry beside a missing path that looks most like it."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.7)
    return str(path.parent / near[0]) if near else None


def _read_folder(source: str, folder: Path) -> Documents:
    texts: list[str] = []
    read = empty = 0
    for path in _text_files(folder):
        documents = read_file(path)
        if any(map(str.strip, documents)):
            texts += documents
            read += 1
        else:
            empty += 1
    if not texts:
        nothing = f"only {empty} empty files" if empty else "no text files"
        raise DataError(nothing, where=source, wanted=f"files ending in {', '.join(READERS)}")
    return _local(source, "folder", texts, files=read, empty=empty)


def _text_files(folder: Path) -> Iterator[Path]:
    """Readable files below `folder`, sorted by their path within it; hidden ones left out."""
    within = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in READERS and path.is_file()
    )
    for name in within:
        if not any(part.startswith(".") for part in name.split("/")):
            yield folder / name


def _local(
    source: str, kind: TextKind, texts: list[str], *, files: int, empty: int = 0
) -> Documents:
    origin = {"path": source, "files": str(files), "documents": str(len(texts))}
    if empty:
        origin["empty_files"] = str(empty)
    return Documents(tuple(texts), kind, origin)
