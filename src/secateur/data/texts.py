"""A source named on the command line -> its documents, with where they came from.

    a path to a file         its documents, by its ending (see files.py)
    a path to a folder       every such file below it that is a text, sorted (see folders.py)
    c4, wikitext2            the hub data sets of the pruning papers (see hub.py)
    builtin                  the text that every Python installation carries (see builtin.py)

A short name comes before a path, so that one command means the same on every machine; write `./c4`
for a folder of that name. Documents stay as they are, empty records included: WikiText-2 is
published as lines, and the papers join all of them, blank ones too.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from secateur.data.builtin import BUILTIN, builtin_documents
from secateur.data.files import ENDINGS, RECORDS, TEXTS, Gathered, Reading, ending, read_file
from secateur.data.folders import text_files
from secateur.data.hub import HUB_TEXTS, Split, read_hub
from secateur.data.rows import NoColumnError
from secateur.errors import DataError, closest, unreadable
from secateur.machine.paths import as_path, near_path

TextKind = Literal["text", "jsonl", "json", "csv", "parquet", "arrow", "folder", "hub", "builtin"]


@dataclass(frozen=True)
class Documents:
    """The documents of one source.

    Args:
        texts: the documents in the order of the source. A tuple, or for a hub data set its memory
            mapped column, so that a shard of C4 need not be held in memory.
        kind: what the source turned out to be.
        origin: provenance for the run record: the path and the number of files read, or the
            repository, configuration, split and data file; and the number of documents.
        notices: what the user should know of them, one line each.
    """

    texts: Sequence[str]
    kind: TextKind
    origin: dict[str, str]
    notices: tuple[str, ...] = ()


def read_documents(source: str, split: Split, reading: Reading | None = None) -> Documents:
    """All documents of a file, a folder, a hub data set or the built-in text.

    Args:
        source: a path or a short name, as listed at the head of this module.
        split: which part of what a short name stands for, and which files of a folder that has
            several; any other path is read whole.
        reading: how records become text; by default their column "text".

    Raises:
        DataError: nothing is called that, or it cannot be read, or it holds no text.
    """
    reading = reading or Reading()
    if reading.column is not None and source in (*HUB_TEXTS, BUILTIN):
        raise without_columns(reading.column, source)
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
        return _read_folder(source, path, split, reading)
    if reading.column is not None and ending(path) in TEXTS:
        raise without_columns(reading.column, source)
    gathered = Gathered(source)
    read_file(path, gathered, reading)
    if not any(map(str.strip, gathered.texts)):
        nothing = f"no text in {gathered.nulls} null records" if gathered.nulls else "no text"
        raise DataError(nothing, where=source, wanted="at least one document")
    kind = ending(path)
    named = "text" if kind in TEXTS else kind.removeprefix(".").replace("tsv", "csv")
    return _local(gathered, cast("TextKind", named), files=1)


def has_columns(source: str) -> bool:
    """Whether a source may have columns to choose from: it is a file of records, or a folder."""
    if source in (*HUB_TEXTS, BUILTIN):
        return False
    path = as_path(source, fault=DataError)
    return path.is_dir() or ending(path) in RECORDS


def without_columns(column: str, source: object) -> DataError:
    """The fault of a column that is asked for where nothing has columns to choose from."""
    return DataError(
        f"column {column!r} of {source if isinstance(source, str) else 'tokens in memory'}",
        wanted="a file of records, such as .jsonl, or a folder of them",
    )


def locate_text(source: str) -> Path:
    """The existing file or folder that `source` names.

    Raises:
        DataError: there is none.
    """
    path = as_path(source, fault=DataError)
    try:
        if path.is_file() or path.is_dir():
            return path
    except PermissionError as error:
        raise unreadable(path, error, DataError) from error
    if path.is_symlink() or path.exists():
        what = "neither a file nor a folder" if path.exists() else "a link to nothing"
        raise DataError(f"{source!r} is {what}", wanted="a file or a folder of texts")
    raise DataError(
        f"no file, folder or data set is called {source!r}",
        wanted=f"a path or {closest(source, [*HUB_TEXTS, BUILTIN])}",
        hint=near_path(path),
    )


def _read_folder(source: str, folder: Path, split: Split, reading: Reading) -> Documents:
    files = text_files(folder, split)
    gathered = Gathered(source, told=[*files.notices])
    read = empty = 0
    strange: list[NoColumnError] = []
    for path in files.paths:
        before, nulls = len(gathered.texts), gathered.nulls
        try:
            read_file(path, gathered, reading)
        except NoColumnError as fault:
            if ending(path) != ".json":  # which is what settings are kept in, too
                raise
            strange.append(fault)
            gathered.nulls = nulls
            del gathered.texts[before:]
            continue
        if any(map(str.strip, gathered.texts[before:])):
            read += 1
        else:
            empty += 1
            del gathered.texts[before:]
    if not gathered.texts:
        if strange:
            raise strange[0]
        nothing = f"only {empty} empty files" if empty else "no text files"
        raise DataError(
            " and ".join([nothing, *files.notices]),
            where=source,
            wanted=f"files ending in {', '.join(ENDINGS)}",
        )
    if strange:
        some = f"{len(strange)} JSON file{'s'[: len(strange) - 1]} without text"
        gathered.told.append(f"left out of {folder}: {some} ({strange[0]})")
    return _local(gathered, "folder", files=read, empty=empty)


def _local(gathered: Gathered, kind: TextKind, *, files: int, empty: int = 0) -> Documents:
    texts = tuple(gathered.texts)
    origin = {"path": gathered.source, "files": str(files), "documents": str(len(texts))}
    if empty:
        origin["empty_files"] = str(empty)
    return Documents(texts, kind, origin, gathered.notices)
