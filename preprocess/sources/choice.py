"""Which table of a source holds the reports, and what its other tables add to the rows.

Exports often come in two tables, one with keys, patients and files, one with texts. They are joined by the
accession number, UID or study that both have; a table without such a key counts by its own keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from medvl.errors import BadTable, file_token
from medvl.preprocess.sources.columns import ROLES, Columns, Overrides, guess_columns
from medvl.preprocess.sources.discovery import SourceFile
from medvl.preprocess.sources.identifiers import loose
from medvl.preprocess.sources.matching import KEYS, ReportTable
from medvl.preprocess.sources.rows import Row
from medvl.preprocess.sources.tables import ENCODING, read_table

__all__ = ["Tables", "choose_tables", "read_reports"]

_STEMS = ("reports", "report", "images", "metadata", "studies", "data")
_SPECIAL = ("labels", "boxes", "truth")
_BY_JOIN = tuple(role for role in ROLES if role not in ("text", "labels", "name"))


@dataclass(frozen=True)
class Tables:
    """The tables of a source by their use.

    Attributes:
        others: those that nobody named.
        parts: whether all hold reports under the same columns, as the parts of one export do.
    """

    table: Path | None = None
    labels: Path | None = None
    boxes: Path | None = None
    others: tuple[Path, ...] = ()
    parts: bool = False

    def paths(self) -> set[Path]:
        """Return those that are there."""
        return {path for path in (self.table, self.labels, self.boxes, *self.others) if path is not None}


@dataclass
class _Read:
    """A table as it was read."""

    path: Path
    frame: pd.DataFrame
    columns: Columns
    notes: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """How surely it holds reports: 3 as told, 2 by the name of a column, 1 by its prose, 0 not at all."""
        if not self.columns.text:
            return 0
        return {"": 3}.get(why := self.columns.why.get("text", ""), 1 if why.startswith("longest") else 2)


def choose_tables(
    source: Path,
    files: Sequence[SourceFile],
    *,
    table: Path | None,
    labels: Path | None,
    boxes: Path | None,
    columns: Overrides | None,
) -> Tables:
    """Return which table is what: as told, else by name, else by what its columns hold.

    Tables count that lie in the source or in its folder ``tables``; only where there is none, deeper ones do.

    Raises:
        BadTable: several tables hold reports, and none is called so.
    """
    homes = (source, source / "tables")  # where exports and medvl deid put them
    every = [file.path for file in files if file.kind == "table"]
    here = [path for path in every if path.parent in homes] or every
    labels = labels or next((path for path in here if _is_called(path, "labels")), None)
    boxes = boxes or next((path for path in here if _is_called(path, "boxes")), None)

    def rest(paths: Sequence[Path]) -> list[Path]:
        told = {path.resolve() for path in (table, labels, boxes) if path is not None}
        special = [path for path in paths if any(_is_called(path, word) for word in _SPECIAL)]
        return [path for path in paths if path not in special and path.resolve() not in told]

    others = rest(here) or rest(every)
    parts = False
    if table is None and others:
        parts = _are_parts(others, columns)
        table = others[0] if len(others) == 1 or parts else _with_reports(others, columns)
    return Tables(table, labels, boxes, tuple(path for path in others if path != table), parts)


def _is_called(path: Path, word: str) -> bool:
    return path.stem.lower() == word or path.stem.lower().endswith(f"_{word}")


def _with_reports(paths: Sequence[Path], columns: Overrides | None) -> Path:
    named = [path for stem in _STEMS for path in paths if path.stem.lower() == stem]
    if named and named[0].stem.lower() in _STEMS[:2]:
        return named[0]
    ranks = {path: _rank(path, columns) for path in paths}
    best = [path for path in paths if ranks[path] == max(ranks.values())]
    chosen = best if len(best) == 1 else [path for path in named if path in best]
    if not chosen:
        counts = "none has a column of texts" if not max(ranks.values()) else f"{len(best)} have one of texts"
        raise BadTable(
            f"the source holds {len(paths)} tables that could hold the reports; {counts}.",
            hint="Name the one with the texts: --table PATH; the others are joined to it by a key of both.",
        )
    return chosen[0]


def _are_parts(paths: Sequence[Path], columns: Overrides | None) -> bool:
    """Whether several tables have the same columns, texts among them; one called reports stands alone."""
    if len(paths) < 2 or any(path.stem.lower() in _STEMS[:2] for path in paths):
        return False
    try:
        tables = [_read(path, columns) for path in paths]
    except BadTable:
        return False
    return all(one.rank > 1 for one in tables) and len({tuple(one.frame.columns) for one in tables}) == 1


def _rank(path: Path, columns: Overrides | None) -> int:
    try:
        return _read(path, columns).rank
    except BadTable:
        return 0


def _read(path: Path, columns: Overrides | None) -> _Read:
    """Read a table with those of the given columns that it has."""
    frame = read_table(path)
    return _Read(path, frame, guess_columns(frame, columns=_own(frame, columns)))


def _own(frame: pd.DataFrame, columns: Overrides | None) -> dict[str, str | list[str] | tuple[str, ...]]:
    return {role: value for role, value in (columns or {}).items() if _names(value) <= set(frame.columns)}


def _names(value: str | Sequence[str]) -> set[str]:
    return {part for part in (value.split("+") if isinstance(value, str) else value) if part}


# --- rows ---------------------------------------------------------------------------------------------------


def read_reports(tables: Tables, columns: Overrides | None) -> list[ReportTable]:
    """Read the table of the reports with what others add to it; first it, then those with keys of their own.

    Raises:
        BadTable: the table of the reports cannot be read, or names neither images nor studies.
    """
    if tables.table is None:
        return [ReportTable(Columns(), [])]
    frame = read_table(tables.table)
    extra, notes = _extra(tables, columns)
    elsewhere = {str(name) for one in extra for name in one.frame.columns}
    theirs = [role for role in columns or {} if role not in _own(frame, columns)]
    own = {
        role: value
        for role, value in (columns or {}).items()
        if role not in theirs or not _names(value) <= elsewhere
    }
    reports = ReportTable.of(frame, guess_columns(frame, columns=own))
    found = [reports]
    for one in extra:
        more = ReportTable.of(one.frame, one.columns, path=one.path)
        if one.columns.text:
            found.append(more)
            continue
        key, form = _shared(reports, more)
        if key:
            stated = {form(row.get(key)) for row in more.rows}
            count = sum(form(row.get(key)) in stated for row in reports.rows)
            total = len(reports.rows)
            joined = ReportTable(
                _with(reports.columns, one.columns, f"of a table joined by {key}"),
                list(_joined(reports, more, key, form)),
            )
            joined.unpaired, joined.notes = reports.unpaired, reports.notes
            joined.notes.append(f"a second table was joined by {key}: it has {count} of {total} reports")
            found[0] = reports = joined
        else:
            found.append(more)
            reports.columns = _with(reports.columns, one.columns, "of a table with keys of its own")
            notes.append("a second table shares no key with the reports: it counts by its own keys")
    if guessed := frame.attrs.get(ENCODING):
        notes.append(
            f"the table is not Unicode: it was read as {guessed}; check accents, or save it as UTF-8"
        )
    reports.notes += notes
    if not reports.columns.name_something():
        raise BadTable(
            f"the table {file_token(tables.table)} has no column that names an image or a study.",
            hint="Say which one does: --column image=NAME, or study=, accession=, study_uid=, sop_uid=; "
            "patient= and date= together will do; likewise text=.",
        )
    return found


def _shared(reports: ReportTable, more: ReportTable) -> tuple[str, Callable[[str], str]]:
    """Return the key that both tables have, as written or, where no cell is equal, in its loose form."""
    for form in (str, loose):
        for key in KEYS:
            ours, theirs = ([value for value in one.by[key] if form(value)] for one in (reports, more))
            unique = all(len({form(value) for value in values}) == len(values) for values in (ours, theirs))
            if unique and {form(value) for value in ours} & {form(value) for value in theirs}:
                return key, form
    return "", str


def _extra(tables: Tables, columns: Overrides | None) -> tuple[list[_Read], list[str]]:
    """Read what has a key and is no table of other reports."""
    found, unread = [], 0
    for path in tables.others:
        try:
            one = _read(path, columns)
        except BadTable:
            unread += 1
            continue
        keyed = any(getattr(one.columns, role) for role in (*KEYS, "image"))
        if keyed and tables.parts:
            found.append(one)
        elif keyed and one.rank < 2:
            found.append(replace(one, columns=replace(one.columns, text=())))
        else:
            unread += 1
    note = f"{unread} more tables were not used: they have reports of their own, no key, or cannot be read"
    count = len(tables.others) + 1
    notes = [f"{count} tables have the same columns: they were read as one"] if tables.parts else []
    return found, [*notes, note] if unread else notes


def _with(columns: Columns, more: Columns, why: str) -> Columns:
    new = {
        role: value
        for role in _BY_JOIN
        if not getattr(columns, role) and (value := getattr(more, role)) is not None
    }
    return replace(columns, **new, why=columns.why | dict.fromkeys(new, why))


def _joined(reports: ReportTable, more: ReportTable, key: str, form: Callable[[str], str]) -> Iterator[Row]:
    """Yield each report with what the other table says of its study, once for each image that it names."""
    used: set[int] = set()
    by = {form(value): rows for value, rows in more.by[key].items()}
    for row in reports.rows:
        partners = by.get(form(row.get(key)), []) if row.get(key) else []
        used |= {id(partner) for partner in partners}
        naming = [] if row.images else [partner for partner in partners if partner.images]
        for partner in naming:
            yield _filled(row, [partner])
        if not naming:
            yield _filled(row, partners)
    yield from (row for row in more.rows if id(row) not in used)


def _filled(row: Row, partners: Sequence[Row]) -> Row:
    values: dict[str, str] = {}
    for one in reversed([row, *partners]):
        values |= {role: cell for role, cell in one.values.items() if cell}
    labels = {finding: state for one in reversed([row, *partners]) for finding, state in one.labels.items()}
    images = row.images or next((one.images for one in partners if one.images), ())
    return replace(row, values=values, labels=labels, images=images)
