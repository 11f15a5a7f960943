"""Tables from outside, read as strings: CSV, TSV, Parquet.

A table that cannot be read gives :class:`~medvl.errors.BadTable` with the line, never with the cell: a
cell may name a patient.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet

from medvl.errors import BadTable, file_token, nearest

__all__ = ["SUFFIXES", "read_table"]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read CSV, TSV or Parquet; every cell is a string, leading zeros stay, the index is the line.

    UTF-8 with or without BOM, UTF-16 with BOM, and Windows-1252 are understood; the delimiter is the one of
    comma, semicolon, tab and bar that cuts the first rows most evenly.

    Raises:
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
    else:
        frame = _read_delimited(path)
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


def _read_delimited(path: Path) -> pd.DataFrame:
    text = _decode(path)
    delimiter = _delimiter(text, prefer="\t" if path.suffix.lower() == ".tsv" else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            if not header:
                header = _header(row, path) if any(cell.strip() for cell in row) else []
            elif row and len(row) != len(header):
                raise BadTable(
                    f"line {line} of {file_token(path)} has {len(row)} fields; the header has {len(header)}.",
                    hint="Quote fields that hold the delimiter, a quotation mark or a line break.",
                )
            elif any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(line)
            line = reader.line_num + 1
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


def _decode(path: Path) -> str:
    data = path.read_bytes()
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise BadTable(
        f"the table {file_token(path)} is neither UTF-8, UTF-16 nor Windows-1252 text.",
        hint="Export it as UTF-8.",
    )


def _delimiter(text: str, *, prefer: str) -> str:
    """Return the delimiter that gives the most columns with the same number in the first rows."""
    best, most = prefer, (0, 0)
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
        if not widths:
            continue
        score = (int(widths[0] > 1) * sum(width == widths[0] for width in widths), widths[0])
        if score > most:
            best, most = delimiter, score
    return best


def _header(row: list[str], path: Path) -> list[str]:
    names = [name.strip() or f"column_{i}" for i, name in enumerate(row, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadTable(
            f"the header of {file_token(path)} has the column '{twice[0]}' {names.count(twice[0])} times.",
            hint="Give each column a name of its own.",
        )
    return names
