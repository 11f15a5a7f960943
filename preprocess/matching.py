"""Rows of tables under the keys of images: identifiers of the header, file names, names of folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from medvl.preprocess.columns import Columns, Overrides, guess_columns
from medvl.preprocess.dicom import DicomHeader
from medvl.preprocess.discovery import IMAGE_SUFFIXES, SourceFile
from medvl.preprocess.labels import row_labels
from medvl.preprocess.tables import read_table

from medvl.errors import BadTable, file_token
from medvl.records import LabelState

__all__ = ["ByKey", "FoundImage", "ReportTable", "Row", "path_parts"]

T = TypeVar("T")


def path_parts(name: str) -> tuple[str, ...]:
    """Return the components of a file name from the last to the first; image suffixes do not count."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".")]
    if not parts:
        return ()
    stem = parts[-1]
    while PurePosixPath(stem).suffix.lower() in IMAGE_SUFFIXES:
        stem = PurePosixPath(stem).stem
    return (stem, *reversed(parts[:-1]))


class _Names(Generic[T]):
    """Values under file names: a name matches a file when the shorter path is the end of the longer one."""

    def __init__(self, pairs: Iterable[tuple[str, T]]) -> None:
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str, T]]] = defaultdict(list)
        for name, value in pairs:
            parts = path_parts(name)
            if parts and ".." not in parts:
                self._by_stem[parts[0]].append((parts, PurePosixPath(name.replace("\\", "/")).suffix, value))

    def find(self, relative: str) -> list[T]:
        """Return the values whose name agrees best: most components, then the same suffix."""
        parts, suffix = path_parts(relative), PurePosixPath(relative).suffix
        if not parts:
            return []
        scored = [
            ((min(len(own), len(parts)), own_suffix == suffix), value)
            for own, own_suffix, value in self._by_stem.get(parts[0], ())
            if all(a == b for a, b in zip(own, parts, strict=False))
        ]
        best = max((score for score, _ in scored), default=None)
        return [value for score, value in scored if score == best]


@dataclass
class FoundImage:
    """A file with its header, None where there is none."""

    file: SourceFile
    header: DicomHeader | None

    def ids(self) -> dict[str, str]:
        """Return the identifiers of the header by the role of their columns."""
        header = self.header
        if header is None:
            return {}
        return {"accession": header.accession, "study_uid": header.study_uid, "sop_uid": header.sop_uid}


@dataclass
class Row:
    """A row of the report table; ``used`` when an image has taken it."""

    line: int
    cells: dict[str, str]
    text: str
    labels: dict[str, LabelState]
    used: bool = False


class ReportTable:
    """The report table with its rows indexed by each kind of key."""

    def __init__(self, columns: Columns, rows: list[Row]) -> None:
        self.columns = columns
        self.rows = rows
        self.by: dict[str, dict[str, list[Row]]] = {}
        for role in ("accession", "study_uid", "sop_uid", "study"):
            column = getattr(self.columns, role)
            index: dict[str, list[Row]] = defaultdict(list)
            for row in self.rows if column else ():
                if row.cells[column]:
                    index[row.cells[column]].append(row)
            self.by[role] = index
        self.names = _Names((name, row) for row in self.rows for name in self.image_names(row))

    @classmethod
    def read(cls, path: Path, columns: Overrides | None) -> ReportTable:
        """Read a table.

        Raises:
            BadTable: it cannot be read, or names neither images nor studies.
        """
        frame = read_table(path)
        guess = guess_columns(frame, columns=columns)
        if not any(getattr(guess, role) for role in ("accession", "study_uid", "sop_uid", "image", "study")):
            raise BadTable(
                f"the table {file_token(path)} has no column that names an image or a study.",
                hint="Name it, for example columns={'accession': 'ORDER_NO'} or {'image': 'file'}.",
            )
        cells = [{str(name): str(cell) for name, cell in row.items()} for row in frame.to_dict("records")]
        states = row_labels(frame, guess)
        return cls(
            guess,
            [
                Row(int(line), row, guess.report_text(row), labels)
                for line, row, labels in zip(frame.index, cells, states, strict=True)
            ],
        )

    def image_names(self, row: Row) -> list[str]:
        """Return the image files that a row names; several are cut by semicolon or bar."""
        if not self.columns.image:
            return []
        return [part.strip() for part in re.split(r"[;|]", row.cells[self.columns.image]) if part.strip()]

    def match(self, image: FoundImage) -> tuple[str, list[Row]]:
        """Return the first kind of key under which rows are found, and these rows."""
        ids = image.ids()
        named = self.names.find(image.file.relative)
        exact = self.by["sop_uid"].get(ids.get("sop_uid", ""), []) or named
        for method in ("accession", "study_uid", "sop_uid"):
            rows = self.by[method].get(ids.get(method, ""), [])
            rows = rows or self.by["study"].get(ids.get(method, ""), [])
            if rows:
                own = [row for row in rows if any(row is other for other in exact)]
                return method, own or rows
        if named:
            return "file", named
        for part in reversed(PurePosixPath(image.file.relative).parts[:-1]):
            rows = self.by["study"].get(part) or self.by["study"].get(part[1:] if part[:1] == "s" else "")
            if rows:
                return "folder", rows
        return "none", []

    def get(self, row: Row | None, role: str) -> str | None:
        """Return the cell of a role; None when there is no row, no column or no value."""
        column = getattr(self.columns, role)
        value = row.cells[column] if row is not None and column else ""
        return None if value.lower() in ("", "?", "unknown", "nan") else value


class ByKey(Generic[T]):
    """Labels or boxes under a key of any kind, found for an image."""

    def __init__(self, table: Mapping[str, T]) -> None:
        self.table = dict(table)
        self.names = _Names((key, key) for key in table)
        self.used: set[str] = set()

    def unused(self) -> set[str]:
        """Return the keys that no image has asked for."""
        return self.table.keys() - self.used

    def find(self, image: FoundImage, study: str) -> T | None:
        """Return the value of the image, or of its study."""
        ids = image.ids()
        keys = [ids.get("sop_uid", ""), ids.get("accession", ""), ids.get("study_uid", ""), study]
        keys = [key for key in keys if key in self.table] or self.names.find(image.file.relative)
        self.used.update(keys)
        return self.table[keys[0]] if keys else None
