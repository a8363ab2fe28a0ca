"""One text file -> its documents. Text is data only: nothing here unpickles or runs what it reads.

Every fault names the file and the place in it: byte offset, line or row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from secateur.errors import DataError, closest


def read_file(path: Path) -> list[str]:
    """The documents of one file, by its extension.

    Raises:
        DataError: the extension is unknown, or the file cannot be read as what it claims to be.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(
            f"extension {suffix!r}" if suffix else "no extension",
            where=path,
            wanted=closest(suffix, READERS),
        )
    try:
        return READERS[suffix](path)
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error})",
            where=path,
            wanted="a file that you may read",
        ) from error


def read_text(path: Path) -> list[str]:
    """Plain text or Markdown: one document, or several with a form feed between them."""
    text = _decode(path.read_bytes(), path).replace("\r\n", "\n")
    return [document for document in text.split("\f") if document.strip()]


def read_jsonl(path: Path) -> list[str]:
    """JSON lines: the field "text" of every line; blank lines are skipped."""
    texts = []
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = _decode(line, path, offset)
            offset += len(line)
            if text.strip():
                texts.append(_record_text(text, f"{path} line {number}"))
    return texts


def read_parquet(path: Path) -> list[str]:
    """Parquet: the column "text" of every row."""
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            columns = table.schema_arrow.names
            if columns.count("text") != 1:
                raise _without_text("column", columns, path)
            texts: list[object] = table.read(columns=["text"]).column("text").to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(
                f"damaged parquet ({reason})", where=path, wanted="a whole parquet file"
            ) from error
    return [_checked(text, f"{path} row {row}") for row, text in enumerate(texts, start=1)]


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 -> str, a byte order mark at the head of the file dropped; `offset` of data in it."""
    if (nul := data.find(b"\0")) >= 0:
        raise DataError(
            f"a NUL byte at offset {offset + nul}: this is binary or UTF-16",
            where=path,
            wanted="UTF-8 text",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{data[error.start]:02x} at offset {offset + error.start} is not UTF-8",
            where=path,
            wanted="UTF-8 text",
            hint="converting the file, for instance with iconv",
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _record_text(line: str, where: str) -> str:
    """The field "text" of one JSON object."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"invalid JSON ({error.msg}, column {error.colno})",
            where=where,
            wanted="one JSON object per line",
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond any text
        raise DataError(
            f"invalid JSON ({error})", where=where, wanted="one JSON object per line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"a JSON {type(record).__name__}", where=where, wanted='an object with a field "text"'
        )
    if "text" not in record:
        raise _without_text("field", list(record), where)
    return _checked(record["text"], where)


def _without_text(part: str, present: list[str], where: object) -> DataError:
    names = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "")
    return DataError(
        f'no {part} "text" (found: {names or "none"})', where=where, wanted=f'one {part} "text"'
    )


def _checked(text: object, where: str) -> str:
    """`text` if it is a string that a tokenizer can take: JSON can escape half a character."""
    if not isinstance(text, str):
        raise DataError(f'"text" is of type {type(text).__name__}', where=where, wanted="a string")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f'"text" holds half a surrogate pair at character {error.start}',
                where=where,
                wanted="valid Unicode",
            ) from error
    return text
