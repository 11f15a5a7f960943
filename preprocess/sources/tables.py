"""Tables from outside, read as strings: CSV, TSV, Parquet, Excel; and cells that are safe to write.

A table that cannot be read gives :class:`~medvl.errors.BadTable` with the line, never with the cell: a
cell may name a patient.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from jaxtyping import Int64

from medvl.errors import BadTable, MissingDependency, file_token, nearest
from medvl.preprocess.reports.parsing import MAX_CHARACTERS

__all__ = [
    "ENCODING",
    "SUFFIXES",
    "TOO_LONG",
    "read_table",
]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".xlsx")
TOO_LONG = "lines with a cell that is too long"
"""Key of ``DataFrame.attrs``: the lines that were left out because a cell is longer than any report."""

ENCODING = "encoding that was guessed"
"""Key of ``DataFrame.attrs``: how bytes that are no Unicode were read."""

_MAX_WORKBOOK_BYTES = 2**30
_MAX_COLUMNS = 256


def read_table(path: str | Path) -> pd.DataFrame:
    """Read CSV, TSV, Parquet or Excel; every cell is a string, leading zeros stay, the index is the line.

    UTF-8 with or without BOM, UTF-16 with BOM, and Windows-1252 are understood; the delimiter is the one of
    comma, semicolon, tab and bar that cuts the first rows most evenly. Of a workbook the first sheet with
    rows is read. A row with a cell longer than any report is left out, its line kept in
    ``frame.attrs[TOO_LONG]``.

    Raises:
        MissingDependency: a workbook, and openpyxl is not installed.
        BadTable: no such file, not a table, empty, an open quotation mark, a row with another number of
            fields than the header, or two columns of one name.
    """
    path = Path(path)
    if not path.is_file():
        raise BadTable(f"the table {file_token(path)} does not exist.", hint="Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise BadTable(
            f"a table cannot have the suffix '{path.suffix}'.", hint=nearest(path.suffix, SUFFIXES)
        )
    if path.suffix.lower() in (".parquet", ".pq"):
        frame = _read_parquet(path)
    elif path.suffix.lower() == ".xlsx":
        frame = _read_workbook(path)
    else:
        frame = _read_delimited(path)
    long = _longest(frame) > MAX_CHARACTERS
    if long.any():
        lines = [int(line) for line in frame.index[long]]
        frame = frame[~long]
        frame.attrs[TOO_LONG] = lines
    if frame.empty:
        raise BadTable(
            f"the table {file_token(path)} has no rows.", hint="It needs a header and one row or more."
        )
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadTable(
            f"the table {file_token(path)} is not readable Parquet.", hint="Export it again."
        ) from error
    names = _header([str(name) for name in table.column_names], path)
    cells = {
        name: ["" if cell is None else str(cell).strip() for cell in table.column(i).to_pylist()]
        for i, name in enumerate(names)
    }
    return pd.DataFrame(cells, index=pd.RangeIndex(1, table.num_rows + 1, name="line"), dtype=str)


def _longest(frame: pd.DataFrame) -> Int64[np.ndarray, " rows"]:
    """Return the length of the longest cell of each row."""
    longest = np.zeros(len(frame), np.int64)
    for name in frame.columns:
        np.maximum(longest, np.fromiter(map(len, frame[name]), np.int64, len(frame)), out=longest)
    return longest


def _read_workbook(path: Path) -> pd.DataFrame:
    refused = BadTable(f"the table {file_token(path)} is not a readable workbook.", hint="Export it as CSV.")
    try:
        with zipfile.ZipFile(path) as parts:
            declared = sum(info.file_size for info in parts.infolist())  # zipfile reads no further than this
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise refused from error
    if declared > _MAX_WORKBOOK_BYTES:
        raise BadTable(
            f"the workbook {file_token(path)} unfolds to {declared:,} bytes; the limit is "
            f"{_MAX_WORKBOOK_BYTES:,}.",
            hint="Export the sheet as CSV.",
        )
    try:
        import openpyxl
    except ImportError as error:
        raise MissingDependency("openpyxl", extra="excel") from error
    rows: list[tuple[int, list[str]]] = []
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        for sheet in book.worksheets:
            # one cell at the far corner makes a million rows of 16,384 empty cells
            listed = enumerate(sheet.iter_rows(values_only=True, max_col=_MAX_COLUMNS), 1)
            filled = ((line, [_cell(value) for value in row]) for line, row in listed if any(row))
            rows = [(line, cells) for line, cells in filled if any(cells)]
            while len(rows) > 1 and _is_title(rows[0][1]):
                rows.pop(0)
            if len(rows) > 1:
                break
        book.close()
    except Exception as error:  # a workbook that is none makes openpyxl raise nearly anything
        raise refused from error
    if len(rows) < 2:
        raise BadTable(
            f"the table {file_token(path)} has no rows.", hint="It needs a header and one row or more."
        )
    width = max(i for _, row in rows for i, cell in enumerate(row, 1) if cell)
    header = _header([*rows[0][1][:width], *[""] * (width - len(rows[0][1]))], path)
    cells = [[*row[:width], *[""] * (width - len(row))] for _, row in rows[1:]]
    lines = pd.Index([line for line, _ in rows[1:]], name="line", dtype="int64")
    return pd.DataFrame(cells, columns=header, index=lines, dtype=str)


def _cell(value: Any) -> str:
    """Return a cell of a workbook as an export to CSV writes it; a whole number has no ``.0``."""
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).strip()


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read any cell; what is too long for a report costs its row, not the table."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_delimited(path: Path) -> pd.DataFrame:
    text, guessed = _decode(path)
    with _long_cells():
        frame = _split(text, path)
    if guessed:
        frame.attrs[ENCODING] = guessed
    return frame


def _split(text: str, path: Path) -> pd.DataFrame:
    declared = re.match(r"sep=([,;|\t])\r?\n", text, re.IGNORECASE)  # what Excel writes for itself
    text = text[declared.end() :] if declared else text
    prefer = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = declared[1] if declared else _delimiter(text, prefer=prefer)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    header: list[str] = []
    skipped = 1 if declared else 0
    line = 1 + skipped
    try:
        for row in reader:
            while header and len(row) > len(header) and not row[-1].strip():
                row.pop()  # delimiters at the end that the header does not have
            if not header:
                titles = not any(cell.strip() for cell in row) or _is_title(row)
                header = [] if titles else _header(row, path)
            elif row and len(row) != len(header):
                raise BadTable(
                    f"line {line} of {file_token(path)} has {len(row)} fields; the header has {len(header)}.",
                    hint="Quote fields that hold the delimiter, a quotation mark or a line break.",
                )
            elif any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(line)
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise BadTable(
            f"line {line} of {file_token(path)} is not a row: {error}.",
            hint="A quotation mark may be missing; inside a quoted field it is written twice.",
        ) from error
    if not header:
        raise BadTable(
            f"the table {file_token(path)} is empty.", hint="It needs a header and one row or more."
        )
    return pd.DataFrame(rows, columns=header, index=pd.Index(lines, name="line", dtype="int64"), dtype=str)


def _decode(path: Path) -> tuple[str, str]:
    """Return the text of a file, and the name of its encoding where that had to be guessed."""
    data = path.read_bytes()
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text, "Windows-1252" if encoding == "cp1252" else ""
    raise BadTable(
        f"the table {file_token(path)} is neither UTF-8, UTF-16 nor Windows-1252 text.",
        hint="Export it as UTF-8.",
    )


def _encodings(data: bytes) -> tuple[str, ...]:
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return ("utf-16",)
    if b"\0" in data[:2]:  # a header begins with a letter or a quotation mark: UTF-16 without its mark
        return ("utf-16-le",) if data[1:2] == b"\0" else ("utf-16-be",)
    return ("utf-8-sig", "cp1252")


def _delimiter(text: str, *, prefer: str) -> str:
    """Return the delimiter that cuts the largest share of the first rows as the header, into most columns."""
    best, most = prefer, (0.0, 0)
    for delimiter in (prefer, ",", "\t", ";", "|"):
        widths: list[int] = []
        try:
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
                if row:
                    widths.append(len(row))
                if len(widths) == 20:
                    break
        except csv.Error:
            pass  # the real reading names the line
        if not widths or widths[0] < 2:
            continue
        score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
        if score > most:
            best, most = delimiter, score
    return best


def _is_title(row: Sequence[str]) -> bool:
    """Whether a row is a title above the header: one cell, the first, and nothing in the others."""
    return len(row) > 1 and bool(row[0].strip()) and not any(cell.strip() for cell in row[1:])


def _header(row: list[str], path: Path) -> list[str]:
    names = [name.strip() or f"column_{i}" for i, name in enumerate(row, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadTable(
            f"the header of {file_token(path)} has the column '{twice[0]}' {names.count(twice[0])} times.",
            hint="Give each column a name of its own.",
        )
    return names
