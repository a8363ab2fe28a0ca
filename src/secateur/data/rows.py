"""Files of records -> the value of one column, record by record; nothing is built before its turn.

    JSON lines     one JSON value a line; blank lines are skipped
    JSON           lines, or one array of records, or one object
    CSV, TSV       names in the first line, then one record a line, quoted as spreadsheets do
    parquet, arrow the column alone; text that is stored once and repeated is held once

The JSON reader of `datasets` is not used: it reads an array whole, stops at a null line, names no
line, and a nesting of 100,000 brackets ends the process.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from secateur.errors import DataError
from secateur.machine.limits import MOST_RECORD_BYTES, MOST_RECORDS, MOST_TEXT_BYTES, at_most

ColumnChoice = Callable[[str, list[str], object], str]
"""Chooses the column: (what a column is called there, the names that there are, where) -> name."""

_CHUNK = 1 << 20
"""Characters of a JSON array that are read at once."""
_BATCH = 1024
"""Rows of parquet that are decoded together."""


class NoColumnError(DataError):
    """A file of records that have no such column."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One record of a file.

    Attributes:
        value: of the column; None if the record, or its column, is null.
        where: file and line, row or record.
        size: bytes that the record takes, about.
    """

    value: Any
    where: str
    size: int


def read_jsonl_rows(file: IO[bytes], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """JSON lines: one record of every line that is not blank."""
    for number, line in _lines(file, path):
        if line.strip():
            yield _row(parse_json(line, where := f"{path} line {number}"), where, len(line), choose)


def read_json_rows(file: IO[bytes], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """An array of records, records line by line, or one record over several lines."""
    lines = _lines(file, path)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            pieces = itertools.chain([line.lstrip()[1:]], (more for _, more in lines))
            yield from _array(pieces, path, choose)
            return
        if line.rstrip().endswith("}") or line.strip() == "null":
            where = f"{path} line {number}"
            yield _row(parse_json(line, where), where, len(line), choose)
            continue
        rest, ended = _gather((more for _, more in lines), MOST_RECORD_BYTES)
        if not ended:
            at_most(MOST_RECORD_BYTES, len(line + rest), "characters or more", where=path,
                    fault=DataError)  # fmt: skip
        yield _row(parse_json(line + rest, str(path)), str(path), len(line + rest), choose)


def read_csv_rows(
    file: IO[bytes], path: Path, choose: ColumnChoice, delimiter: str = ","
) -> Iterator[DataRow]:
    """Comma-separated values under the names in the first line."""
    csv.field_size_limit(max(MOST_RECORD_BYTES, csv.field_size_limit()))
    records = csv.reader((line for _, line in _lines(file, path)), delimiter=delimiter, strict=True)
    try:
        names = next(records, [])
        index = names.index(choose("column", names, path)) if names else 0
        for record in records:
            where = f"{path} line {records.line_num}"
            if len(record) > len(names):
                raise DataError(
                    f"{len(record)} values under {len(names)} names",
                    where=where,
                    wanted="one value for every name",
                )
            if record:
                value = record[index] if index < len(record) else None
                yield DataRow(value, where, sum(map(len, record)))
    except csv.Error as error:
        raise DataError(
            f"damaged CSV ({error})", where=f"{path} line {records.line_num}", wanted="whole lines"
        ) from error


def read_tsv_rows(file: IO[bytes], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """Tab-separated values under the names in the first line."""
    return read_csv_rows(file, path, choose, "\t")


def read_parquet_rows(file: IO[bytes], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """Parquet: one record a row."""
    table = pyarrow.parquet.ParquetFile(file)
    column = choose("column", table.schema_arrow.names, path)
    leaves, batch = _leaves(table, column, path)
    table = pyarrow.parquet.ParquetFile(file, read_dictionary=leaves)
    return _of_batches(table.iter_batches(batch_size=batch, columns=[column]), column, path)


def read_arrow_rows(file: IO[bytes], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """Arrow, a stream or a file, as `datasets` saves it: one record a row."""
    try:
        batches: Any = pyarrow.ipc.open_stream(file)
        column = choose("column", batches.schema.names, path)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        opened = pyarrow.ipc.open_file(file)
        column = choose("column", opened.schema.names, path)
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    return _of_batches((_sound(batch.select([column])) for batch in batches), column, path)


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond any text, too
        raise _invalid(error, where) from error


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 -> str, a byte order mark at the head of the file dropped; `offset` of data in it.

    Raises:
        DataError: the bytes are no UTF-8 text.
    """
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


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, its end included."""
    offset = 0
    for number in itertools.count(1):
        line = file.readline(MOST_RECORD_BYTES + 1)
        if not line:
            return
        where = f"{path} line {number}"
        at_most(MOST_RECORD_BYTES, len(line), "bytes or more", where=where, fault=DataError)
        yield number, decode(line, path, offset)
        offset += len(line)


def _row(record: Any, where: str, size: int, choose: ColumnChoice) -> DataRow:
    """The column of one JSON record."""
    if record is None:
        return DataRow(None, where, size)
    if not isinstance(record, dict):
        raise NoColumnError(
            f"a JSON {type(record).__name__}", where=where, wanted='an object with a field "text"'
        )
    return DataRow(record[choose("field", list(record), where)], where, size)


def _array(pieces: Iterator[str], path: Path, choose: ColumnChoice) -> Iterator[DataRow]:
    """The records of a JSON array whose text, behind the bracket, comes in pieces."""
    read_one = json.JSONDecoder().raw_decode
    buffer, position, ended = "", 0, False
    for number in itertools.count(1):
        where = f"{path} record {number}"
        while True:  # until a whole record lies in the buffer
            begin = _skip(buffer, position)
            if buffer.startswith("]", begin):
                if any(map(str.strip, itertools.chain([buffer[begin + 1 :]], pieces))):
                    raise DataError("text behind the array", where=path, wanted="one JSON array")
                return
            try:
                if number > 1 and not buffer.startswith(",", begin):
                    raise json.JSONDecodeError("Expecting ',' delimiter", buffer, begin)
                value, end = read_one(buffer, _skip(buffer, begin + (number > 1)))
                break
            except RecursionError as error:
                raise _invalid(error, where) from error
            except ValueError as error:
                if ended:
                    raise _invalid(error, where) from error
            at_most(MOST_RECORD_BYTES, len(buffer) - begin, "characters or more", where=where,
                    fault=DataError)  # fmt: skip
            buffer, position = buffer[begin:], 0
            more, ended = _gather(pieces, max(_CHUNK, len(buffer)))
            buffer += more
        record = {"text": value} if isinstance(value, str) else value
        yield _row(record, where, end - begin, choose)
        position = end


def _skip(text: str, begin: int) -> int:
    """The first position from `begin` on that holds no blank."""
    return next((n for n in range(begin, len(text)) if text[n] not in " \t\r\n"), len(text))


def _gather(pieces: Iterator[str], least: int) -> tuple[str, bool]:
    """The next pieces, so many characters at least if there are; and whether they are at an end."""
    taken: list[str] = []
    size = 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size >= least:
            return "".join(taken), False
    return "".join(taken), True


def _invalid(error: Exception, where: str) -> DataError:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
    return DataError(f"invalid JSON ({reason})", where=where, wanted="one JSON object per record")


def _leaves(table: Any, column: str, path: Path) -> tuple[list[str], int]:
    """What of a parquet column is to stay in dictionaries, and how many rows to decode at once.

    A value that is stored once and repeated a million times is so held once. Where the encoding
    forbids it, few rows are decoded together, by the bytes that each may have.

    Raises:
        DataError: a row group is larger than any that is written.
    """
    schema, metadata = table.schema, table.metadata
    inside = [n for n in range(len(schema)) if f"{schema.column(n).path}.".startswith(f"{column}.")]
    chunks = [
        metadata.row_group(group).column(n)
        for group in range(metadata.num_row_groups)
        for n in inside
    ]
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    at_most(MOST_TEXT_BYTES, largest, "bytes in one row group", where=path, fault=DataError)
    texts = [n for n in inside if schema.column(n).physical_type == "BYTE_ARRAY"]
    if schema.column(inside[0]).max_repetition_level:
        values = max((chunk.num_values for chunk in chunks), default=0)
        at_most(MOST_RECORDS, values, "values in one row group", where=path, fault=DataError)
    if any("DELTA" in encoding for chunk in chunks for encoding in chunk.encodings):
        return [], max(1, min(_BATCH, MOST_RECORD_BYTES // max(1, largest)))
    return [schema.column(n).path for n in texts], _BATCH


def _sound(batch: Any) -> Any:
    """A record batch once it is known that its offsets stay within it."""
    batch.validate(full=True)
    return batch


def _of_batches(batches: Iterator[Any], column: str, path: Path) -> Iterator[DataRow]:
    """The rows of one column of record batches; a dot in its name may have brought others along."""
    every = itertools.chain.from_iterable(batch.column(column) for batch in batches)
    for number, value in enumerate(every, 1):
        plain = value.as_py()
        yield DataRow(plain, f"{path} row {number}", _size(plain))


def _size(value: Any) -> int:
    """Bytes that a value takes, about: those of its text, and some for what holds it."""
    if isinstance(value, str | bytes):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 8 + sum(map(_size, inner))
