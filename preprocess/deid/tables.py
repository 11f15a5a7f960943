"""Report tables and report files cleaned with the same key and the same days as the images."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from medvl.errors import BadTable, InputError, file_token
from medvl.preprocess.deid.dates import find_dates
from medvl.preprocess.deid.people import People
from medvl.preprocess.deid.text import deidentify_text
from medvl.preprocess.deid.values import cap_age
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.columns import Columns, guess_columns, plain
from medvl.preprocess.sources.tables import TOO_LONG, read_table

__all__ = ["CleanTable", "CleanText", "clean_table", "clean_text_file", "identifying_columns"]

_DROPPED = re.compile(
    r"name|initials|dob|birth|address|street|city|town|state$|zip|post(?:al)?code|county|country|phone|mobile|^tel|fax|mail|"
    r"ssn|social|insurance|mrn|nhs|passport|licen|physician|doctor|provider|referr|radiologist|technologist|operator|"
    r"nurse|institution|hospital|clinic|department|station|device|serial|url|contact|next_?of_?kin|account|visit"
)
_NAMES = re.compile(r"name|physician|doctor|provider|radiologist|technologist|operator|nurse|contact")
_NOT_NAMES = re.compile(r"file|image|path|hospital|institution|procedure|study|series|device|station")
_AGE = re.compile(r"^(?:patient)?age(?:years?|atstudy|atscan)?$")
_DATE = re.compile(r"date|datetime|time$|^day$|performed|timestamp")
_KEPT = frozenset({"sex", "gender", "patientsex", "modality", "bodypart", "bodypartexamined"})
_NUMBER = re.compile(r"[-+]?\d{1,4}(?:\.\d+)?|true|false|nan|none", re.IGNORECASE)
_COUNTED = re.compile(r"(?:id|uid|no|number|code|key)$")
_ID_LIKE = re.compile(r"(?=[^.]*\d{4})[\w-]{6,}")
"""What a column of unknown meaning holds when it tells one case from another."""
_WORDS = re.compile(r"[A-Za-z][A-Za-z /_-]{0,31}")
MAX_TEXT_BYTES = 16 * 2**20


@dataclass
class CleanTable:
    """A table without identities.

    Attributes:
        data: the file's bytes.
        suffix: of the file: a workbook becomes CSV.
        rows: how many it holds.
        rows_left_out: rows whose patient nobody can tell.
        columns: what was done, action to number of columns; columns are not named.
        words: kind to how many were replaced.
    """

    data: bytes
    suffix: str
    rows: int
    rows_left_out: int
    columns: dict[str, int] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)


@dataclass
class CleanText:
    """A report without identities, and how many words of each kind were replaced."""

    data: bytes
    words: Counter[str]


def identifying_columns(path: Path) -> list[tuple[str, list[str]]]:
    """Return kind and cells of each column that a clean table does not show as it is.

    Raises:
        BadTable: the table cannot be read.
    """
    frame = read_table(path)
    columns = guess_columns(frame)
    plan = _plan(frame, columns)
    found = []
    for name, action in plan.items():
        cells = [cell for cell in frame[name] if cell]
        if action == "drop" and frame[name].str.count(" ").mean() > 4:
            continue  # prose: its names and numbers are searched one by one
        if action == "drop" and not _DROPPED.search(plain(name)):
            cells = [cell for cell in cells if _ID_LIKE.fullmatch(cell)]
        if action in ("patient", "accession", "study", "uid", "image", "drop"):
            found.append(("table", cells))
    return found


def clean_table(path: Path, *, ids: Pseudonyms, people: People) -> CleanTable:
    """Clean a report table: pseudonyms for ids, moved dates, clean texts; what is not understood is dropped.

    A column stays as it is only when its name says that it is harmless (sex, view, split, labels), when it
    holds small numbers, or when it holds words each of which several patients share.

    Args:
        path: CSV, TSV or Parquet.
        ids: pseudonyms.
        people: of the images; takes in the names and numbers of the rows.

    Raises:
        BadTable: the table cannot be read, or no column joins it to a patient.
    """
    frame = read_table(path)
    columns = guess_columns(frame)
    if not (columns.patient or columns.accession or columns.study_uid or columns.sop_uid or columns.image):
        raise BadTable(
            f"no column of the table {file_token(path)} names a patient, an accession number, a UID or an "
            "image.",
            hint="Without one nobody knows by how many days its dates move; name such a column patient_id.",
        )
    plan = _plan(frame, columns)
    cleaner = _Rows(ids, people, columns, plan)
    rows = [row for row in map(cleaner.clean, frame.to_dict("records")) if row is not None]
    kept = [name for name, action in plan.items() if action != "drop"]
    clean = pd.DataFrame(rows, columns=kept, dtype=str)
    every = [name for names in people.names.values() for name in names]
    clean.columns = [deidentify_text(name, names=every)[0] for name in kept]
    return CleanTable(
        *_file(clean, path.suffix.lower()),
        len(clean),
        len(frame) - len(clean) + len(frame.attrs.get(TOO_LONG, ())),
        dict(Counter(plan.values())),
        cleaner.words,
    )


def clean_text_file(path: Path, *, ids: Pseudonyms, people: People, patient: str) -> CleanText:
    """Clean a report that is a file of its own.

    Raises:
        InputError: the file is larger than 16 MiB, or unreadable.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"the text has {len(data):,} bytes; the limit is {MAX_TEXT_BYTES:,}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    clean, words = deidentify_text(
        text,
        names=tuple(people.names[patient]),
        ids=tuple(people.numbers[patient]),
        shift_days=ids.shift_days(patient),
    )
    return CleanText(clean.encode(), Counter(words))


def _plan(frame: pd.DataFrame, columns: Columns) -> dict[str, str]:
    """Say for each column what happens to its cells."""
    roles = {columns.patient: "patient", columns.accession: "accession", columns.study: "study"}
    roles |= {columns.study_uid: "uid", columns.sop_uid: "uid", columns.image: "image"}
    roles |= dict.fromkeys(columns.text, "text")
    roles |= dict.fromkeys((*columns.labels, columns.view, columns.laterality, columns.split), "keep")
    shared = frame[columns.patient] if columns.patient else pd.Series(frame.index.astype(str), frame.index)
    return {str(name): roles.get(name) or _unknown(str(name), frame[name], shared) for name in frame.columns}


def _unknown(name: str, cells: pd.Series, patients: pd.Series) -> str:
    short = plain(name)
    if _AGE.search(short):
        return "age"
    if "birth" in short or short == "dob":
        return "drop"
    if _DATE.search(short):
        return "date"
    if short in _KEPT and cells.str.len().max() <= 16:
        return "keep"
    if _DROPPED.search(short):
        return "drop"
    filled = cells[cells != ""]
    if not len(filled):
        return "drop"
    if not _COUNTED.search(short) and filled.map(lambda cell: bool(_NUMBER.fullmatch(cell))).all():
        return "keep"
    if filled.map(lambda cell: bool(_WORDS.fullmatch(cell))).all():
        many = patients[filled.index].groupby(filled).nunique()
        return "keep" if many.min() > 1 else "drop"
    return "drop"


@dataclass
class _Rows:
    ids: Pseudonyms
    people: People
    columns: Columns
    plan: dict[str, str]
    words: Counter[str] = field(default_factory=Counter)

    def clean(self, row: dict[str, str]) -> dict[str, str] | None:
        """Return a row without identities, or None where nobody can tell whose it is."""
        patient = self._patient(row)
        if not patient:
            return None
        self.people.know(
            patient,
            names=(row[c] for c in row if _NAMES.search(plain(c)) and not _NOT_NAMES.search(plain(c))),
            numbers=(
                row[c]
                for c, action in self.plan.items()
                if action in ("patient", "accession", "study")
                or (action == "drop" and _COUNTED.search(plain(c)))
            ),
        )
        days = self.ids.shift_days(patient)
        return {
            name: self._cell(row[name], action, patient, days)
            for name, action in self.plan.items()
            if action != "drop"
        }

    def _patient(self, row: dict[str, str]) -> str | None:
        """Prefer the patient that the images know: a table may write the same number in another way."""
        c = self.columns
        linked = self.people.of(*_cells(row, (c.accession, c.study_uid, c.sop_uid, c.patient)))
        if linked is None and c.image and row[c.image]:
            path = PurePosixPath(row[c.image].replace("\\", "/"))
            linked = self.people.of(path.stem)
        return linked or (row[c.patient] if c.patient else None) or None

    def _cell(self, cell: str, action: str, patient: str, days: int) -> str:
        if not cell or (action == "keep" and _NUMBER.fullmatch(cell)):
            return cell
        if action == "patient":
            return self.ids.patient(patient)
        if action == "accession":
            return self.ids.accession(cell)
        if action == "study":
            return self.ids.study(cell)
        if action == "uid":
            return self.ids.uid(cell)
        if action == "image":
            path = PurePosixPath(cell.replace("\\", "/"))
            return self.people.target(path.as_posix(), path.name, path.stem) or ""
        if action == "age":
            return cap_age(cell) if cell[-1:].isalpha() else _capped(cell)
        if action == "date":
            return _moved(cell, days)
        text, words = deidentify_text(
            cell,
            names=tuple(self.people.names[patient]),
            ids=tuple(self.people.numbers[patient]),
            shift_days=days if action == "text" else 0,
        )
        self.words.update(words)
        return text


def _cells(row: dict[str, str], names: Iterable[str | None]) -> list[str]:
    return [row[name] for name in names if name]


def _capped(cell: str) -> str:
    try:
        years = float(cell)
    except ValueError:
        return ""
    return "90" if years >= 90 else cell


def _moved(cell: str, days: int) -> str:
    """Move the date of a cell; a cell without one that is understood becomes empty."""
    spans = list(find_dates(cell, shift_days=days))
    if len(spans) != 1 or re.search(
        "[A-Za-z]{2}", cell[: spans[0].start] + cell[spans[0].end :].replace("AM", "").replace("PM", "")
    ):
        return ""
    span = spans[0]
    return cell[: span.start] + span.shown + cell[span.end :]


def _file(frame: pd.DataFrame, suffix: str) -> tuple[bytes, str]:
    """Return the bytes of a table and the suffix that fits them."""
    if suffix in (".parquet", ".pq"):
        stream = io.BytesIO()
        frame.to_parquet(stream, index=False)
        return stream.getvalue(), ".parquet"
    separator, suffix = ("\t", ".tsv") if suffix == ".tsv" else (",", ".csv")
    return frame.to_csv(index=False, sep=separator, lineterminator="\n").encode(), suffix
