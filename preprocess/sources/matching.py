"""Rows of tables under the keys of images: identifiers of the header, file names, names of folders."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from medvl.errors import BadTable, file_token
from medvl.preprocess.sources.columns import Columns, Overrides, guess_columns
from medvl.preprocess.sources.discovery import IMAGE_SUFFIXES
from medvl.preprocess.sources.headers import FoundImage
from medvl.preprocess.sources.labels import row_labels
from medvl.preprocess.sources.tables import read_table
from medvl.records import LabelState
from medvl.specs import text_hash

__all__ = ["ByKey", "Match", "ReportTable", "Row", "path_parts"]

T = TypeVar("T")

Fit = tuple[int, bool, int]
"""How well a name fits a file: components in common, same suffix, minus components that only one has."""

_NO_FIT: Fit = (0, False, 0)


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

    def find(self, relative: str) -> tuple[Fit, list[T]]:
        """Return the values whose name agrees best, and how well."""
        parts, suffix = path_parts(relative), PurePosixPath(relative).suffix
        scored = [
            ((min(len(own), len(parts)), own_suffix == suffix, -abs(len(own) - len(parts))), value)
            for own, own_suffix, value in self._by_stem.get(parts[0] if parts else "", ())
            if all(a == b for a, b in zip(own, parts, strict=False))
        ]
        best = max((score for score, _ in scored), default=_NO_FIT)
        return best, [value for score, value in scored if score == best]


@dataclass
class Row:
    """A row of the report table; ``used`` once an image has it; ``missing`` are names that no image has."""

    line: int
    cells: dict[str, str]
    text: str
    labels: dict[str, LabelState]
    used: bool = False
    missing: set[str] = field(default_factory=set)


@dataclass
class Match:
    """What the table says of one image.

    Attributes:
        method: the kind of key under which rows were found, or ``none``.
        rows: all of them; ``row`` is the one to take.
        refusal: why none can be taken.
    """

    method: str = "none"
    rows: list[Row] = field(default_factory=list)
    score: Fit = _NO_FIT
    refusal: str = ""

    @property
    def row(self) -> Row | None:
        """The first row with a report, else the first row."""
        return next((row for row in self.rows if row.text), self.rows[0] if self.rows else None)

    @property
    def line(self) -> int:
        """The line of the first row, 0 without rows."""
        return self.rows[0].line if self.rows else 0


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
        self.names = _Names((name, (row, name)) for row in self.rows for name in self.image_names(row))
        for row in self.rows:
            row.missing = set(self.image_names(row))

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
                hint="Say which one does: --column image=NAME, or study=, accession=, study_uid=, sop_uid=; "
                "likewise text= and patient=.",
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

    def match_all(self, images: Sequence[FoundImage]) -> list[Match]:
        """Give each image its rows; refuse what would be a guess.

        ``conflicting_reports``: its rows hold different texts. ``ambiguous_file_name``: the row's file name
        fits several images equally well; one that fits it less well than another has no row.
        """
        matches = [self._match(image) for image in images]
        best: dict[int, Fit] = defaultdict(lambda: _NO_FIT)
        for match in (match for match in matches if match.method == "file"):
            best[match.line] = max(best[match.line], match.score)
        for match in matches:
            if match.method == "file" and match.score < best[match.line]:
                match.method, match.rows = "none", []
        claims = Counter(match.line for match in matches if match.method == "file")
        for match in matches:
            for row in match.rows:
                row.used = True
            if len({text_hash(row.text) for row in match.rows if row.text}) > 1:
                match.refusal = "conflicting_reports"
            elif match.method == "file" and claims[match.line] > len(self.image_names(match.rows[0])):
                match.refusal = "ambiguous_file_name"
        return matches

    def _match(self, image: FoundImage) -> Match:
        ids = image.ids()
        score, named = self.names.find(image.file.relative)
        for row, name in named:
            row.missing.discard(name)
        by_name = [row for row, _ in named]
        exact = self.by["sop_uid"].get(ids.get("sop_uid", ""), []) or by_name
        for method in ("accession", "study_uid", "sop_uid"):
            rows = self.by[method].get(ids.get(method, ""), [])
            rows = rows or self.by["study"].get(ids.get(method, ""), [])
            if rows:
                own = [row for row in rows if any(row is other for other in exact)]
                return Match(method, own or rows)
        if by_name:
            return Match("file", by_name, score)
        for part in reversed(PurePosixPath(image.file.relative).parts[:-1]):
            for name in (part, part[1:] if part[:1] == "s" else part):  # MIMIC writes s50414267
                if name in self.by["study"]:
                    return Match("folder", self.by["study"][name])
        return Match()

    def unused(self, source: Path) -> list[tuple[str, int]]:
        """Return reason and line of each row, or image name in a row, that no image has."""
        entries = []
        for row in self.rows:
            if row.used and self.columns.image and len(self.image_names(row)) > len(row.missing):
                entries += [("named_image_missing", row.line)] * len(row.missing)
            elif not row.used:
                outside = any(_leaves(name, source) for name in self.image_names(row))
                without = "report_without_image" if row.text else "row_without_image"
                entries.append(("path_outside_source" if outside else without, row.line))
        return entries

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

    def find(self, relative: str, ids: Iterable[str]) -> T | None:
        """Return the value under one of the identifiers, else under the file name."""
        keys = [key for key in ids if key in self.table] or self.names.find(relative)[1]
        self.used.update(keys)
        return self.table[keys[0]] if keys else None


def _leaves(name: str, source: Path) -> bool:
    path = Path(name)
    return ".." in path_parts(name) or (path.is_absolute() and not path.is_relative_to(source.resolve()))
