"""Large tables of public data sets: chosen columns, JSON lines, labels; gzip within limits."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv

from medvl.errors import BadTable, DecompressionLimit, file_token, nearest
from medvl.preprocess.sources.labels import CHEXPERT, finding_name
from medvl.records import LabelState

__all__ = ["header", "label_states", "read_columns", "read_json_lines"]

_MOST_BYTES = 8 << 30
_RATIO, _FLOOR = 100, 64 << 20
_BLOCK = 16 << 20
"""A row must fit into one block."""


class _Inflated(io.RawIOBase):
    """A gzip file that ends with an error where it grows beyond all proportion."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")
        self._left = min(_MOST_BYTES, max(_FLOOR, _RATIO * path.stat().st_size))
        self._token = file_token(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DecompressionLimit(
                f"the table {self._token} grows to more than {_RATIO} times its size.",
                hint="It is damaged or made to fill the memory; download it again.",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Inflated(path), 1 << 20)
    return path.open("rb")


_DAMAGED = (OSError, EOFError, zlib.error)


def header(path: Path) -> list[str]:
    """Return the column names of a CSV file, from its first line; none when it cannot be read."""
    try:
        with _open(path) as file:
            text = file.readline(1 << 16).decode("utf-8-sig", "replace")
        return [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    except (*_DAMAGED, csv.Error, DecompressionLimit):
        return []


def read_columns(path: Path, *, need: Sequence[str], maybe: Sequence[str] = ()) -> pd.DataFrame:
    """Read some columns of a CSV file, plain or gzip.

    Cells are strings without blanks at their ends; "nan" and "null" are empty. The index is the number of the
    record, the header being 1: the line, as long as no cell holds a line break.

    Args:
        path: the file.
        need: columns that must be there.
        maybe: columns that come out empty if they are not.

    Raises:
        BadTable: a column is missing, or the file is not a table.
        DecompressionLimit: it grows to more than a hundred times its size.
    """
    names = header(path)
    for name in need:
        if name not in names:
            raise BadTable(
                f"the table {file_token(path)} has no column '{name}'.",
                hint=nearest(name, names) if 0 < len(names) <= 60 else "Is it the table of this data set?",
            )
    wanted = [name for name in (*need, *maybe) if name in names]
    table = None
    for encoding in ("utf8", "cp1252"):
        try:
            table = _read(path, names, wanted, encoding)
            break
        except UnicodeDecodeError:
            continue
    if table is None:
        raise BadTable(f"the table {file_token(path)} is not UTF-8 text.", hint="Download it again.")
    frame = pd.DataFrame({name: _clean(table.column(name)) for name in wanted})
    for name in maybe:
        if name not in frame:
            frame[name] = ""
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")
    return frame


def _read(path: Path, names: list[str], wanted: list[str], encoding: str) -> pyarrow.Table:
    try:
        with _open(path) as file:
            return pyarrow.csv.read_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK, encoding=encoding, column_names=names, skip_rows=1
                ),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=wanted,
                    column_types={name: pyarrow.string() for name in wanted},
                    strings_can_be_null=False,
                ),
            )
    except pyarrow.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise UnicodeDecodeError(encoding, b"", 0, 1, "not UTF-8") from error
        row = re.search(r"Row #(\d+): (Expected \d+ columns, got \d+)", str(error))
        where = f"record {row[1]}: {row[2].lower()}" if row else "it cannot be cut into rows"
        raise BadTable(
            f"the table {file_token(path)} is damaged: {where}.", hint="Download it again."
        ) from error
    except (*_DAMAGED, pyarrow.ArrowException) as error:
        raise BadTable(
            f"the table {file_token(path)} cannot be read to its end.", hint="Download it again."
        ) from error


def _clean(column: pyarrow.ChunkedArray) -> pd.Series:
    cells = pyarrow.compute.utf8_trim_whitespace(column).to_pandas().astype(object)
    return cells.mask(cells.isin(("nan", "NaN", "null", "NULL", "<NA>")), "")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of one JSON object a line; yield the line's number and the object.

    Raises:
        BadTable: a line is not a JSON object, or is longer than 16 MiB.
        DecompressionLimit: a gzip file grows to more than a hundred times its size.
    """
    try:
        with _open(path) as file:
            number = 0
            while line := file.readline(_BLOCK):
                number += 1
                if not line.strip():
                    continue
                yield number, _object(line, number, path)
    except _DAMAGED as error:
        raise BadTable(
            f"the table {file_token(path)} cannot be read to its end.", hint="Download it again."
        ) from error


def _object(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadTable(
            f"line {number} of {file_token(path)} is not JSON.", hint="Download it again."
        ) from error
    if not isinstance(value, dict):
        raise BadTable(
            f"line {number} of {file_token(path)} is not a JSON object.", hint="Download it again."
        )
    return value


def label_states(frame: pd.DataFrame, columns: Sequence[str], *, path: Path) -> list[dict[str, LabelState]]:
    """Return the labels of each row of a table with one column a finding: 1, 0, −1 or blank.

    Equal rows share one dictionary: a quarter of a million studies have a few thousand different ones.

    Raises:
        BadTable: a cell is none of these.
    """
    codes = np.zeros((len(frame), len(columns)), np.int8)
    states: list[LabelState | None] = [None, "present", "absent", "uncertain"]
    for k, column in enumerate(columns):
        inverse, cells = pd.factorize(frame[column])
        try:
            code = [states.index(CHEXPERT.state(str(cell))) for cell in cells]
        except KeyError:
            bad = next(i for i, cell in enumerate(cells) if not _is_label(str(cell)))
            raise BadTable(
                f"record {frame.index[int(np.argmax(inverse == bad))]} of {file_token(path)} has a cell of "
                f"{len(str(cells[bad]))} characters in the label column '{column}'.",
                hint="Allowed are 1, 0, -1 and blank.",
            ) from None
        codes[:, k] = np.array(code, np.int8)[inverse] if len(cells) else 0
    names = [finding_name(column) for column in columns]
    different, inverse = np.unique(codes, axis=0, return_inverse=True)
    shared = [
        {name: state for name, code in zip(names, row, strict=True) if (state := states[code]) is not None}
        for row in different
    ]
    return [shared[k] for k in inverse.reshape(-1)]


def _is_label(cell: str) -> bool:
    try:
        CHEXPERT.state(cell)
    except KeyError:
        return False
    return True
