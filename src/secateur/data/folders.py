"""Which files of a folder are its texts, and a line that says what is left out.

    cards        the README, the licence and the card of a data set are about the texts, not of them
    splits       where files of a training split lie beside those of another, each use takes its own
    others       files whose ending is none that can be read, and facts about a folder

Splits are known by the names that `datasets` knows them by: train-00000-of-00004.parquet,
test.jsonl, wiki.valid.txt, or a folder called so. Hidden files are left out and not told of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.data.files import COMPRESSIONS, ENDINGS, TEXTS, ending
from secateur.data.hub import Split
from secateur.errors import DataError, some, unreadable

ABOUT = frozenset({"readme", "license", "licence", "notice", "copying", "citation", "authors"})
"""Names, without ending, of texts that come with a data set and say something of it."""
FACTS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files in which `datasets` keeps what it knows of a folder."""
CARD_KEYS = re.compile(
    rb"^(annotations_creators|base_model|configs|dataset_info|language_creators|library_name|license"
    rb"|multilinguality|pipeline_tag|pretty_name|size_categories|task_categories|task_ids)[ ]*:",
    re.MULTILINE,
)
"""Keys of the facts at the head of a hub's card, between two lines of dashes."""
CARD_HEAD = 65_536
"""Bytes of a Markdown file that are looked at to see whether it is a card."""
SPLITS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
}
"""Word in a name -> the split that it stands for."""
USED: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation")}
"""What is asked for -> the splits that serve it, the first that there is."""


@dataclass(frozen=True)
class TextFiles:
    """The files of a folder that are its texts.

    Attributes:
        paths: sorted by their path within the folder.
        notices: what was left out, in one line; none if nothing was.
    """

    paths: tuple[Path, ...]
    notices: tuple[str, ...]


def text_files(folder: Path, split: Split) -> TextFiles:
    """The files below a folder that are its texts.

    Args:
        folder: to look through.
        split: what they are for, where the folder has a training split and others.

    Raises:
        DataError: a folder may not be read.
    """
    names = sorted(_names(folder))
    odd = [name for name in names if not (folder / name).is_file()]
    names = _without(names, odd)
    readable = [
        name for name in names if ending(Path(name)) in ENDINGS and _name(name) not in FACTS
    ]
    cards = [name for name in readable if _is_card(folder / name)]
    texts = _without(readable, cards)
    about = [name for name in texts if _stem(name) in ABOUT and ending(Path(name)) in TEXTS]
    if len(about) < len(texts):  # a collection of READMEs is a text as any other
        cards += about
        texts = _without(texts, about)
    taken = _of_split(texts, split)
    left_out = [
        _told(cards, "card, README or licence", "cards, READMEs and licences"),
        _told(_without(texts, taken), "file", "files", "another split"),
        _told(
            _without(names, readable), "file", "files", "a kind that is no text"
        ),
        _told(odd, "link or device", "links and devices"),
    ]  # fmt: skip
    told = [line for line in left_out if line]
    return TextFiles(
        tuple(folder / name for name in taken),
        (f"left out of {folder}: {'; '.join(told)}",) if told else (),
    )


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder that is not hidden, and every link, by its path within it."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename or folder, error, DataError) from error

    for inside, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(inside, name))]
        for name in (*files, *linked):
            if not name.startswith("."):
                yield Path(inside, name).relative_to(folder).as_posix()


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    left_out = set(others)
    return [name for name in names if name not in left_out]


def _name(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _stem(name: str) -> str:
    """A file's own name without its endings, in small letters."""
    return _name(name).partition(".")[0]


def _is_card(path: Path) -> bool:
    """Whether a file is the card of a data set or a model, by its head."""
    if ending(path) != ".md" or path.suffix.lower() != ".md":
        return False
    try:
        with path.open("rb") as file:
            head = file.read(CARD_HEAD).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return False  # reading it will say why
    facts = head.partition(b"\n---")[0]
    return head.startswith(b"---") and CARD_KEYS.search(facts) is not None


def _of_split(names: Sequence[str], split: Split) -> Sequence[str]:
    """The files for one use, where there is a training split beside another; else all of them."""
    splits = {name: _split_of(name) for name in names}
    there = set(splits.values())
    if not ("train" in there and there & {"test", "validation"}):
        return names
    if split == "train":
        return [name for name in names if splits[name] in ("train", None)]
    chosen = next(one for one in USED[split] if one in there)
    return [name for name in names if splits[name] == chosen]


def _split_of(name: str) -> str | None:
    """The split that a file belongs to: by the folders that it lies in, then by its own name."""
    *folders, file = name.lower().split("/")
    for folder in folders:
        if folder in SPLITS:
            return SPLITS[folder]
    endings = (*ENDINGS, *COMPRESSIONS)
    words = [word for word in re.split(r"[-._ ]", file) if f".{word}" not in endings]
    if ending(Path(file)) in TEXTS:  # prose is called many things: its last word, numbers aside
        words = [word for word in words if not re.fullmatch(r"\d+|of", word)][-1:]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _told(names: Sequence[str], one: str, many: str, of: str = "") -> str:
    """How many files are left out, and the first of them; nothing of none."""
    if not names:
        return ""
    return f"{len(names)} {one if len(names) == 1 else many}{of and f' of {of}'} ({some(names)})"
