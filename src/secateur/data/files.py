"""One text file -> its documents. Text is data only: nothing here unpickles or runs what it reads.

    .txt, .md                  one document; a form feed separates several
    .json, .jsonl, .csv, .tsv  one document a record, of the column "text", or of the one asked for;
    .parquet, .arrow           a column "messages" or "conversations" by the model's chat template
    .gz, .bz2, .zst            behind any of these but the last two: the file is compressed

Records that are null are skipped and counted. Every fault names the file and the place in it: byte
offset, line or row.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow

from secateur.data.rows import (
    ColumnChoice,
    DataRow,
    NoColumnError,
    decode,
    read_arrow_rows,
    read_csv_rows,
    read_json_rows,
    read_jsonl_rows,
    read_parquet_rows,
    read_tsv_rows,
)
from secateur.errors import DataError, closest, reason, some, unreadable
from secateur.machine.limits import MOST_RECORDS, MOST_TEXT_BYTES

TEXTS = (".txt", ".md")
"""Endings of files that are text and nothing else."""
RECORDS: dict[str, Callable[[IO[bytes], Path, ColumnChoice], Iterator[DataRow]]] = {
    ".jsonl": read_jsonl_rows,
    ".json": read_json_rows,
    ".csv": read_csv_rows,
    ".tsv": read_tsv_rows,
    ".parquet": read_parquet_rows,
    ".arrow": read_arrow_rows,
}
"""Ending -> reads a file of records."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Ending of a compressed file -> what Arrow calls its compression."""
RANDOM_ACCESS = (".parquet", ".arrow")
"""Endings of files that are read from several places, and compress their columns themselves."""
ENDINGS = (*TEXTS, *RECORDS)
"""Endings of files that can be read, the compression taken off."""

TEXT = "text"
"""The column that is read unless another is asked for."""
CONVERSATIONS = ("messages", "conversations")
"""Columns that are read where there is no text: messages of a chat."""
ROLES = {"human": "user", "gpt": "assistant", "function_response": "tool", "observation": "tool"}
"""What ShareGPT's conversations call the speakers -> what chat templates call them."""

Render = Callable[[list[dict[str, Any]]], str]
"""Messages, each with its role and content -> the text that the model would see."""


@dataclass(frozen=True)
class Reading:
    """How files of records become text.

    Attributes:
        column: to read; None reads "text", or else conversations.
        render: the model's chat template; None where there is none.
        option: what asks for a column, for the hint; None where nothing does.
    """

    column: str | None = None
    render: Render | None = None
    option: str | None = None

    def choose(self, part: str, names: list[str], where: object) -> str:
        """The column to read, of those that there are.

        Args:
            part: what a column is called there, such as "field".
            names: of the columns.
            where: the file, or the place in it.

        Raises:
            NoColumnError: it is not there, or there are two of that name.
        """
        wanted = [self.column] if self.column is not None else [TEXT, *CONVERSATIONS]
        for name in wanted:
            if names.count(name) == 1:
                return name
        raise NoColumnError(
            f'no {part} "{wanted[0]}" (found: {some(map(str, names)) or "none"})',
            where=where,
            wanted=f'one {part} "{wanted[0]}"',
            hint=self.option if self.column is None and names else None,
        )

    def text_of(self, row: DataRow) -> str:
        """The text of a record.

        Raises:
            DataError: it has none that a tokenizer can take.
        """
        if isinstance(row.value, list):
            return _checked(self._rendered(row.value, row.where), row.where)
        return _checked(row.value, row.where)

    def _rendered(self, messages: Sequence[Any], where: str) -> str:
        """A conversation as the model would see it."""
        turns = [_turn(message, where) for message in messages]
        if self.render is None:
            raise DataError(
                "messages of a chat, and no chat template to make text of them",
                where=where,
                wanted="a tokenizer with a chat template",
                hint=self.option,
            )
        try:
            return self.render(turns)
        except Exception as error:  # whatever the template's own code raises
            raise DataError(
                f"the model's chat template refuses the messages ({reason(error)})",
                where=where,
                wanted="roles in the order that the template allows",
            ) from error


@dataclass
class Gathered:
    """What was read of a source so far, and so how much of it may still be read.

    Attributes:
        source: as it was asked for.
        texts: the documents.
        nulls: records without one.
        told: what else the user should know of it.
        full: whether the source had more than may be read.
    """

    source: str
    texts: list[str] = field(default_factory=list)
    nulls: int = 0
    told: list[str] = field(default_factory=list)
    full: bool = False
    _size: int = 0
    _records: int = 0

    def take(self, size: int) -> bool:
        """Count a record of so many bytes; whether it may still be read."""
        self._size += size
        self._records += 1
        self.full |= self._size > MOST_TEXT_BYTES or self._records > MOST_RECORDS
        return not self.full

    @property
    def left(self) -> int:
        """Bytes that may still be read."""
        return max(0, MOST_TEXT_BYTES - self._size)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of it."""
        told = [*self.told]
        if self.nulls:
            told.append(f"{self.nulls:,} records of {self.source} are null: they are left out")
        if self.full:
            told.append(
                f"{self.source} is read up to {MOST_TEXT_BYTES:,} bytes of text and "
                f"{MOST_RECORDS:,} records, and no further"
            )
        return tuple(told)


def ending(path: Path) -> str:
    """What a file is, by its name: its ending, or the one before that of a compression."""
    last = path.suffix.lower()
    if last in COMPRESSIONS:
        inner = Path(path.stem).suffix.lower()
        return last if inner in RANDOM_ACCESS else inner
    return last


def read_file(path: Path, gathered: Gathered, reading: Reading) -> None:
    """Add the documents of one file, which is read by its ending.

    Raises:
        DataError: the ending is unknown, or the file cannot be read as what it claims to be.
    """
    kind = ending(path)
    if kind not in ENDINGS:
        raise DataError(
            f"extension {kind!r}" if kind else "no extension",
            where=path,
            wanted=closest(kind, ENDINGS),
        )
    packed = COMPRESSIONS.get(path.suffix.lower())
    what = f"damaged {packed or kind.removeprefix('.')}"
    try:
        with _opened(path, packed) as file:
            if kind in TEXTS:
                _read_text(file, path, gathered)
            else:
                _read_records(RECORDS[kind](file, path, reading.choose), gathered, reading)
    except PermissionError as error:
        raise unreadable(path, error, DataError) from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None):  # the system's, not the reader's
            what = "the file cannot be read"
        raise DataError(f"{what} ({reason(error)})", where=path, wanted="a whole file") from error


def _opened(path: Path, packed: str | None) -> IO[bytes]:
    """The bytes of a file, unpacked as far as they are read."""
    if packed is None:
        return path.open("rb")
    path.open("rb").close()  # which says in the system's words what is wrong
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=packed))


def _read_text(file: IO[bytes], path: Path, gathered: Gathered) -> None:
    """Plain text or Markdown: one document, or several with a form feed between them."""
    most = gathered.left
    data = file.read(most + 1)
    if not gathered.take(len(data)):
        data = data[:most].rsplit(b"\n", 1)[0]
    text = decode(data, path).replace("\r\n", "\n")
    gathered.texts += [document for document in text.split("\f") if document.strip()]


def _read_records(rows: Iterator[DataRow], gathered: Gathered, reading: Reading) -> None:
    for row in rows:
        if not gathered.take(row.size):
            return
        if row.value is None or row.value == []:  # nobody says anything
            gathered.nulls += 1
        else:
            gathered.texts.append(reading.text_of(row))


def _turn(message: Any, where: str) -> dict[str, Any]:
    """One message with its role and content, whichever of the two usual names they have."""
    if isinstance(message, Mapping):
        if "from" in message and "value" in message:
            role = str(message["from"])
            message = {"role": ROLES.get(role, role), "content": message["value"]}
        if "role" in message and "content" in message:
            return {key: value for key, value in message.items() if value is not None}
    raise DataError(
        f"a list of what are no messages of a chat ({type(message).__name__})",
        where=where,
        wanted="text, or messages with role and content",
    )


def _checked(text: object, where: str) -> str:
    """`text` if it is a string that a tokenizer can take: JSON can escape half a character."""
    if not isinstance(text, str):
        raise DataError(
            f"the record is of type {type(text).__name__}", where=where, wanted="a string"
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"the record holds half a surrogate pair at character {error.start}",
                where=where,
                wanted="valid Unicode",
            ) from error
    return text
