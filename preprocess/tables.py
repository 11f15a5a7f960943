"""Tables from outside: read as strings, their columns guessed, shown and overridable.

Three kinds: a report table (one row an image or a study), a label table and a box table. A table that cannot be
read gives :class:`~medvl.errors.BadTable` with the line, never with the cell: cells may name a patient.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from medvl.errors import BadTable, file_token, nearest
from medvl.records import Box, LabelState

__all__ = [
    "CHEXPERT",
    "ROLES",
    "SUFFIXES",
    "Columns",
    "LabelEncoding",
    "finding_name",
    "guess_columns",
    "read_boxes",
    "read_labels",
    "read_table",
    "row_labels",
]

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
            if not header and any(cell.strip() for cell in row):
                header = _header(row, path)
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
        f"the table {file_token(path)} is text in an unknown encoding; allowed are UTF-8, UTF-16 and Windows-1252.",
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


# --- which column is what ---------------------------------------------------------------------------

_NAMES: dict[str, tuple[str, ...]] = {
    "accession": ("accession", "accessionnumber", "accessionno", "accessionid", "acc", "accno"),
    "study_uid": ("studyinstanceuid", "studyuid"),
    "sop_uid": ("sopinstanceuid", "sopuid", "instanceuid", "imageuid", "dicomuid"),
    "image": (
        "image", "path", "imagepath", "filename", "file", "filepath", "imageid", "dicomid", "imageindex", "imagename",
        "imagefile", "imgpath", "frontalfiles", "dicompath", "imagefilename", "jpgpath", "img",
    ),
    "study": ("studyid", "study", "examid", "reportid", "uid", "exam", "caseid"),
    "patient": (
        "groupid", "group", "patientid", "subjectid", "patient", "subject", "patientkey", "pid", "mrn", "personid",
        "tilegroup",
    ),
    "view": ("view", "viewposition", "projection", "viewpositiondicom", "frontallateral", "appa", "orientation"),
    "laterality": ("laterality", "imagelaterality", "side"),
    "split": ("split", "set", "partition", "subset", "dataset"),
}  # fmt: skip
_WHOLE = (
    "report", "reporttext", "text", "fullreport", "radiologyreport", "note", "notes", "caption", "clinicalnotes",
    "reportbody", "narrative", "description",
)  # fmt: skip
_SECTIONS = ("indication", "history", "clinicalhistory", "comparison", "technique", "findings", "impression",
             "conclusion", "recommendation")  # fmt: skip
_CATEGORY = (
    "finding",
    "label",
    "labels",
    "class",
    "category",
    "diagnosis",
    "problems",
    "findinglabels",
    "target",
)
_NOT_LABELS = re.compile(
    r"\b(?:\w*id|uid|age|sex|gender|year|date|width|height|fold|rows?|columns?|bits|frames?|pixels?|days|index|seed)$"
)
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
           "validate": "val", "test": "test", "testing": "test"}  # fmt: skip
_FILE = re.compile(r"[/\\]|\.(?:dcm|dicom|png|jpe?g|tiff?|bmp|webp|nii|gz)$", re.IGNORECASE)

ROLES = (
    "accession",
    "study_uid",
    "sop_uid",
    "image",
    "study",
    "patient",
    "text",
    "view",
    "laterality",
    "split",
    "labels",
)
"""What a column can be; the keys that an override may have."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; ``None`` or ``()`` where there is none.

    Args:
        image: file name, path or stem of one image.
        study: an identifier of a study that is neither accession number nor UID.
        patient: what a split must not tear apart; a group column wins over a patient column.
        text: one column with the report, or several with its sections, joined under headings.
        labels: numeric columns, or one categorical column.
        why: role to the reason of the choice, for :meth:`explain`.
    """

    accession: str | None = None
    study_uid: str | None = None
    sop_uid: str | None = None
    image: str | None = None
    study: str | None = None
    patient: str | None = None
    text: tuple[str, ...] = ()
    view: str | None = None
    laterality: str | None = None
    split: str | None = None
    labels: tuple[str, ...] = ()
    why: dict[str, str] = field(default_factory=dict, compare=False)

    def explain(self) -> list[str]:
        """Return one line a role: the column, and why it was chosen."""
        lines = []
        for role in ROLES:
            value = getattr(self, role)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            if not shown:
                lines.append(f"{role}: none")
            else:
                lines.append(f"{role}: {shown} ({self.why.get(role, 'given')})")
        return lines

    def report_text(self, row: Mapping[str, str]) -> str:
        r"""Return the report of a row: the text column, or the section columns under their headings.

        Examples:
            >>> Columns(text=("findings", "impression")).report_text({"findings": "Clear.", "impression": ""})
            'FINDINGS: Clear.'
        """
        if len(self.text) == 1 and _plain(self.text[0]) not in _SECTIONS:
            return row[self.text[0]]
        return "\n".join(f"{name.upper()}: {row[name]}" for name in self.text if row[name])

    def split_of(self, row: Mapping[str, str]) -> str | None:
        """Return ``train``, ``val`` or ``test`` where the table says so."""
        return _SPLITS.get(row[self.split].lower()) if self.split else None


def guess_columns(
    frame: pd.DataFrame, *, columns: Mapping[str, str | list[str] | tuple[str, ...]] | None = None
) -> Columns:
    """Say which column is what, from names and, where names mislead, from contents.

    Args:
        frame: what :func:`read_table` returned.
        columns: role to column name (or names, for text and labels) where the guess is wrong; "" for none.

    Raises:
        BadTable: an override names a role or a column that does not exist.

    Examples:
        >>> frame = pd.DataFrame({"subject_id": ["1"], "study_id": ["7"], "findings": ["Clear."]})
        >>> [line for line in guess_columns(frame).explain() if "none" not in line]
        ['study: study_id (by name)', 'patient: subject_id (by name)', 'text: findings (sections by name)']
    """
    chosen: dict[str, Any] = {}
    why: dict[str, str] = {}
    given = _overrides(frame, columns or {})
    by_plain = {_plain(str(name)): str(name) for name in reversed(list(frame.columns))}
    taken = {
        name for value in given.values() for name in (value if isinstance(value, tuple) else (value,)) if name
    }
    for role, names in _NAMES.items():
        for name in names:
            column = by_plain.get(name)
            if role not in given and column and column not in taken and _fits(frame[column], role):
                chosen[role], why[role] = column, "by name"
                taken.add(column)
                break
    if why.get("patient") and _plain(chosen["patient"]).startswith("group") and "patientid" in by_plain:
        why["patient"] = "by name; the group wins over the patient"
    if "text" not in given:
        chosen["text"], why["text"] = _guess_text(frame, by_plain, taken)
        taken.update(chosen["text"])
    if "labels" not in given:
        chosen["labels"], why["labels"] = _guess_labels(frame, by_plain, taken)
    return Columns(**{**chosen, **given}, why={role: text for role, text in why.items() if role not in given})


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _overrides(
    frame: pd.DataFrame, columns: Mapping[str, str | list[str] | tuple[str, ...]]
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for role, value in columns.items():
        if role not in ROLES:
            raise BadTable(f"'{role}' is not a role of a column.", hint=nearest(role, ROLES))
        names = [part for part in (value.split("+") if isinstance(value, str) else value) if part]
        for name in names:
            if name not in frame.columns:
                raise BadTable(
                    f"the table has no column '{name}'.", hint=nearest(name, map(str, frame.columns))
                )
        several = role in ("text", "labels")
        if not several and len(names) > 1:
            raise BadTable(f"the role '{role}' takes one column; got {len(names)}.", hint="Name one.")
        given[role] = tuple(names) if several else (names[0] if names else None)
    return given


def _fits(cells: pd.Series, role: str) -> bool:
    """Check contents where a name alone misleads: IU X-ray's ``image`` describes the examination."""
    filled = cells[cells != ""]
    if role == "split":
        return bool(len(filled)) and set(filled.str.lower()) <= set(_SPLITS)
    if role == "image":
        return bool(len(filled)) and not filled.str.contains(r"\s\S*\s", regex=True).mean() > 0.5
    return bool(len(filled))


def _guess_text(
    frame: pd.DataFrame, by_plain: dict[str, str], taken: set[str]
) -> tuple[tuple[str, ...], str]:
    for name in _WHOLE:
        column = by_plain.get(name)
        if column and column not in taken and frame[column].str.contains(" ", regex=False).any():
            return (column,), "by name"
    sections = tuple(by_plain[name] for name in _SECTIONS if name in by_plain and by_plain[name] not in taken)
    if sections:
        return sections, "sections by name"
    prose = {
        str(name): frame[name].str.len().mean()
        for name in frame.columns
        if name not in taken and (frame[name].str.count(" ") >= 4).mean() > 0.5
    }
    if prose:
        return (max(prose, key=lambda name: prose[name]),), "longest prose, a guess: check it"
    return (), ""


def _guess_labels(
    frame: pd.DataFrame, by_plain: dict[str, str], taken: set[str]
) -> tuple[tuple[str, ...], str]:
    numeric = tuple(
        str(name)
        for name in frame.columns
        if name not in taken and not _NOT_LABELS.search(str(name).lower().replace("_", " "))
        and (cells := set(frame[name])) - {""} and cells <= {"", "0", "1", "-1", "0.0", "1.0", "-1.0"}
    )  # fmt: skip
    if numeric:
        return numeric, "1, 0, -1 or blank"
    for name in _CATEGORY:
        column = by_plain.get(name)
        if column and column not in taken and frame[column].nunique() <= max(2, len(frame) // 2):
            return (column,), "categories by name"
    return (), ""


# --- labels and boxes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelEncoding:
    """What the cells of a numeric label column mean; a blank cell is unknown, and is not listed."""

    present: frozenset[str] = frozenset({"1", "1.0", "true", "yes", "present", "positive"})
    absent: frozenset[str] = frozenset({"0", "0.0", "false", "no", "absent", "negative"})
    uncertain: frozenset[str] = frozenset({"-1", "-1.0", "uncertain", "possible"})
    unknown: frozenset[str] = frozenset({"", "nan", "na", "n/a", "none", "unknown", "todo", "?"})

    def state(self, cell: str) -> LabelState | None:
        """Return the state of a cell, or None when nothing is known.

        Raises:
            KeyError: the encoding does not have the cell.
        """
        for state, cells in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if cell.lower() in cells:
                return None if state == "unknown" else state
        raise KeyError


CHEXPERT = LabelEncoding()
"""CheXpert: 1 present, 0 absent, −1 uncertain, blank not mentioned (Irvin et al. 2019); words are understood too."""


def finding_name(label: str) -> str:
    """Return the name of a finding as records hold it.

    Examples:
        >>> finding_name("Pleural Effusion"), finding_name("COVID-19")
        ('pleural_effusion', 'covid_19')
    """
    return re.sub(r"[^\w]+", "_", label.strip().lower()).strip("_")


def row_labels(
    frame: pd.DataFrame, columns: Columns, *, encoding: LabelEncoding = CHEXPERT
) -> list[dict[str, LabelState]]:
    """Return the labels of each row.

    Numeric columns follow ``encoding``. One categorical column is exclusive: a row with a value has its classes
    present (several split by comma, semicolon or bar; ``A/B`` is a path whose every step is present) and each other class
    of the column absent; a row without a value, or with "unknown", has no label at all.

    Raises:
        BadTable: a cell that the encoding does not have.
    """
    if not columns.labels:
        return [{} for _ in range(len(frame))]
    if len(columns.labels) == 1 and not _is_numeric(frame[columns.labels[0]], encoding):
        return _categories(list(frame[columns.labels[0]]), encoding)
    rows: list[dict[str, LabelState]] = [{} for _ in range(len(frame))]
    for column in columns.labels:
        name = finding_name(column)
        for row, line, cell in zip(rows, frame.index, frame[column], strict=True):
            try:
                state = encoding.state(cell)
            except KeyError:
                raise BadTable(
                    f"column '{column}' has a cell of {len(cell)} characters at line {line} that is no label.",
                    hint="Allowed are 1, 0, -1 and blank, or their words; name the label columns with columns=.",
                ) from None
            if state is not None:
                row[name] = state
    return rows


def _is_numeric(cells: pd.Series, encoding: LabelEncoding) -> bool:
    known = encoding.present | encoding.absent | encoding.uncertain | encoding.unknown
    return set(cells.str.lower()) <= known


def _categories(cells: list[str], encoding: LabelEncoding) -> list[dict[str, LabelState]]:
    present = [
        {
            finding_name(step)
            for part in re.split(r"[,;|]", cell.strip("[]"))
            for step in part.replace("'", "").split("/")
            if step.strip().lower() not in encoding.unknown
        }
        for cell in cells
    ]
    classes = sorted(set().union(*present))
    return [
        {name: "present" if name in row else "absent" for name in classes} if row else {} for row in present
    ]


def _key_column(columns: Columns, path: Path) -> str:
    for role in ("sop_uid", "image", "study_uid", "accession", "study"):
        if getattr(columns, role):
            return str(getattr(columns, role))
    raise BadTable(
        f"the table {file_token(path)} has no column that names an image or a study.",
        hint="Name it, for example columns={'accession': 'ORDER_NO'}.",
    )


def read_labels(
    path: str | Path,
    *,
    columns: Mapping[str, str | list[str] | tuple[str, ...]] | None = None,
    encoding: LabelEncoding = CHEXPERT,
) -> dict[str, dict[str, LabelState]]:
    """Read a label table: image or study key → finding → state; a finding that is not listed is unknown.

    Raises:
        BadTable: no key column, no label column, a cell that is no label, or two rows that disagree.
    """
    path = Path(path)
    frame = read_table(path)
    guess = guess_columns(frame, columns=columns)
    key = _key_column(guess, path)
    if not guess.labels:
        raise BadTable(
            f"the table {file_token(path)} has no label column.", hint="Name them, for example columns={'labels': 'edema+nodule'}."
        )  # fmt: skip
    found: dict[str, dict[str, LabelState]] = {}
    for line, name, states in zip(
        frame.index, frame[key], row_labels(frame, guess, encoding=encoding), strict=True
    ):
        if found.setdefault(name, states) != states:
            raise BadTable(
                f"line {line} of {file_token(path)} contradicts an earlier row of its key.", hint="Keep one."
            )
    found.pop("", None)
    return found


_CORNERS = (
    ("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"),
)  # fmt: skip
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def read_boxes(path: str | Path) -> dict[str, tuple[Box, ...]]:
    """Read a box table: image key → boxes, in pixels of the source image, end exclusive.

    Columns: an image (SOPInstanceUID or file name), a label, and four corners or a corner and a size.
    Rows without coordinates say "no box" and are passed over.

    Raises:
        BadTable: a column is missing, or a coordinate is no number or makes an empty box.
    """
    path = Path(path)
    frame = read_table(path)
    key = _key_column(guess_columns(frame), path)
    by_plain = {_plain(str(name)): str(name) for name in frame.columns}
    label = next((by_plain[n] for n in (*_CATEGORY, "structure", "classname", "name") if n in by_plain), None)
    four = next((names for names in (*_CORNERS, *_SIZES) if all(name in by_plain for name in names)), None)
    if label is None or four is None:
        raise BadTable(
            f"the table {file_token(path)} lacks {'a label column' if label is None else 'four coordinate columns'}.",
            hint="Allowed are a label and x0, y0, x1, y1 or x, y, width, height.",
        )
    found: dict[str, list[Box]] = {}
    for line, row in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = [row[by_plain[name]] for name in four]
        if any(cells):
            found.setdefault(row[key], []).append(
                _box(finding_name(row[label]), cells, line, sized=four in _SIZES)
            )
    return {name: tuple(boxes) for name, boxes in found.items()}


def _box(label: str, cells: list[str], line: int, *, sized: bool) -> Box:
    try:
        x0, y0, x1, y1 = (float(cell) for cell in cells)
    except ValueError as error:
        raise BadTable(
            f"line {line} has a coordinate that is no number.", hint="Coordinates are pixels."
        ) from error
    if sized:
        x1, y1 = x0 + x1, y0 + y1
    if not (math.isfinite(x0 + y0 + x1 + y1) and x1 > x0 and y1 > y0):
        raise BadTable(
            f"line {line} has an empty box: ({x0}, {y0}) to ({x1}, {y1}).", hint="Need x0 < x1 and y0 < y1."
        )
    return Box(label, x0, y0, x1, y1)
