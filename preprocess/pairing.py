"""Which image belongs to which report: files found, headers read, rows matched, and all that has no partner.

Nothing is dropped silently: each file and row is an item or an entry of ``Pairing.unpaired`` with its reason. Identifiers
stay in memory; ``summary`` and ``lines`` hold counts alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Literal, TypeVar

from medvl.errors import BadTable, InputError, UsageError, file_token
from medvl.preprocess.dicom import DicomHeader, read_header
from medvl.preprocess.limits import DEFAULT_LIMITS
from medvl.preprocess.part10 import opened
from medvl.preprocess.reading import kind_of
from medvl.preprocess.tables import (
    Columns,
    guess_columns,
    read_boxes,
    read_labels,
    read_table,
    row_labels,
)
from medvl.records import Box, LabelState
from medvl.specs import text_hash

__all__ = ["Item", "Pairing", "SourceFile", "Unpaired", "discover", "pair"]

Kind = Literal["dicom", "raster", "damaged", "table", "outside", "other"]
Headers = Callable[[Callable[[Path], DicomHeader | None], Iterable[Path]], Iterable[DicomHeader | None]]

_IMAGE_SUFFIXES = (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_TABLE_STEMS = ("reports", "report", "images", "metadata", "studies", "data")


@dataclass(frozen=True)
class SourceFile:
    """A file below the source; ``relative`` is its path below it, with ``/``.

    Attributes:
        kind: by content: ``damaged`` is a file that should be an image and is empty or unreadable, ``outside`` a
            link that leads out of the source, ``other`` anything else.
    """

    path: Path
    relative: str
    kind: Kind


@dataclass(frozen=True)
class Item:
    """One image with all that its record needs from outside the pixels.

    Attributes:
        path: below the source as it was given.
        patient, study: keys to be pseudonymised; a split must not tear a patient apart.
        report: "" when there is none.
        method: how the row was found: ``accession``, ``study_uid``, ``sop_uid``, ``file``, ``folder`` or ``none``.
        modality: DICOM modality, "" for raster files.
    """

    path: Path
    patient: str
    study: str
    report: str = ""
    method: str = "none"
    view: str | None = None
    laterality: str | None = None
    split: str | None = None
    labels: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    modality: str = ""


@dataclass(frozen=True)
class Unpaired:
    """A file or a row without a partner; ``token`` names a file without telling its name, ``line`` a row."""

    reason: str
    token: str = ""
    line: int = 0


@dataclass(frozen=True)
class Pairing:
    """All items in the order of their paths, what has no partner, and how the columns were read."""

    items: tuple[Item, ...]
    unpaired: tuple[Unpaired, ...]
    columns: dict[str, str]
    explain: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return counts as JSON values; no identifier is among them."""
        return {
            "images": len(self.items),
            "with_report": sum(bool(item.report) for item in self.items),
            "with_labels": sum(bool(item.labels) for item in self.items),
            "with_boxes": sum(bool(item.boxes) for item in self.items),
            "studies": len({item.study for item in self.items}),
            "patients": len({item.patient for item in self.items}),
            "methods": dict(sorted(Counter(item.method for item in self.items).items())),
            "unpaired": dict(sorted(Counter(entry.reason for entry in self.unpaired).items())),
            "columns": dict(self.columns),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = self.summary()
        methods = ", ".join(
            f"{count} by {name}" for name, count in counts["methods"].items() if name != "none"
        )
        return [
            f"{counts['images']} images of {counts['studies']} studies and {counts['patients']} patients",
            f"{counts['with_report']} with a report, {counts['with_labels']} with labels, "
            f"{counts['with_boxes']} with boxes; matched: {methods or 'none'}",
            *(f"column {line}" for line in self.explain),
            *(f"{reason}: {count}" for reason, count in counts["unpaired"].items()),
            *self.notes,
        ]


# --- files ------------------------------------------------------------------------------------------


def discover(source: Path) -> list[SourceFile]:
    """List the files below a folder in the order of their paths, each with its kind by content.

    Hidden files, record stores and what lies behind linked folders are passed over; a linked file counts only if
    it leads out of the source, as ``outside``, since inside it is found under its own name.

    Raises:
        UsageError: the source is not a folder.
    """
    if not source.is_dir():
        raise UsageError("the source is not a folder.", hint="Give the folder that holds the images.")
    return list(_walk(source, source, source.resolve()))


def _walk(folder: Path, source: Path, root: Path) -> Iterator[SourceFile]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    if any(entry.name == "store.json" for entry in listed):
        return
    for entry in listed:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        relative = path.relative_to(source).as_posix()
        if entry.is_symlink():
            if not path.resolve().is_relative_to(root):
                yield SourceFile(path, relative, "outside")
        elif entry.is_dir():
            yield from _walk(path, source, root)
        elif entry.is_file():
            yield SourceFile(path, relative, _kind(path))


def _kind(path: Path) -> Kind:
    if path.suffix.lower() in _TABLE_SUFFIXES:
        return "table"
    try:
        kind = kind_of(path)
    except InputError:
        return "damaged"
    if kind in ("dicom", "raster"):
        return "other" if path.name == "DICOMDIR" else kind
    image_like = path.suffix.lower() in _IMAGE_SUFFIXES
    if kind == "bare dicom":
        return "dicom" if image_like or not path.suffix else "other"
    return "damaged" if image_like or (kind == "empty" and not path.suffix) else "other"


# --- keys -------------------------------------------------------------------------------------------

T = TypeVar("T")


def _parts(name: str) -> tuple[str, ...]:
    """Return the components of a file name from the last to the first; image suffixes do not count."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".")]
    if not parts:
        return ()
    stem = parts[-1]
    while PurePosixPath(stem).suffix.lower() in _IMAGE_SUFFIXES:
        stem = PurePosixPath(stem).stem
    return (stem, *reversed(parts[:-1]))


class _Names(Generic[T]):
    """Values under file names: a name matches a file when the shorter path is the end of the longer one."""

    def __init__(self, pairs: Iterable[tuple[str, T]]) -> None:
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str, T]]] = defaultdict(list)
        for name, value in pairs:
            parts = _parts(name)
            if parts and ".." not in parts:
                self._by_stem[parts[0]].append((parts, PurePosixPath(name.replace("\\", "/")).suffix, value))

    def find(self, relative: str) -> list[T]:
        """Return the values whose name agrees best: most components, then the same suffix."""
        parts, suffix = _parts(relative), PurePosixPath(relative).suffix
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
class _Image:
    file: SourceFile
    header: DicomHeader | None

    def ids(self) -> dict[str, str]:
        header = self.header
        if header is None:
            return {}
        return {"accession": header.accession, "study_uid": header.study_uid, "sop_uid": header.sop_uid}


@dataclass
class _Row:
    line: int
    cells: dict[str, str]
    text: str
    labels: dict[str, LabelState]
    used: bool = False


class _Table:
    """The report table with its rows indexed by each kind of key."""

    def __init__(self, path: Path, columns: Mapping[str, str] | None) -> None:
        frame = read_table(path)
        self.columns: Columns = guess_columns(frame, columns=columns)
        labels = row_labels(frame, self.columns)
        self.rows = [
            _Row(int(line), cells, self.columns.report_text(cells), states)
            for line, cells, states in zip(frame.index, frame.to_dict("records"), labels, strict=True)
        ]
        self.by: dict[str, dict[str, list[_Row]]] = {}
        for role in ("accession", "study_uid", "sop_uid", "study"):
            column = getattr(self.columns, role)
            index: dict[str, list[_Row]] = defaultdict(list)
            for row in self.rows if column else ():
                if row.cells[column]:
                    index[row.cells[column]].append(row)
            self.by[role] = index
        self.names = _Names((name, row) for row in self.rows for name in self.image_names(row))
        if not (self.columns.image or any(self.by.values())):
            raise BadTable(
                f"the table {file_token(path)} has no column that names an image or a study.",
                hint="Name it, for example columns={'accession': 'ORDER_NO'} or {'image': 'file'}.",
            )

    def image_names(self, row: _Row) -> list[str]:
        """Return the image files that a row names; several are cut by semicolon or bar."""
        if not self.columns.image:
            return []
        return [part.strip() for part in re.split(r"[;|]", row.cells[self.columns.image]) if part.strip()]

    def match(self, image: _Image) -> tuple[str, list[_Row]]:
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

    def get(self, row: _Row | None, role: str) -> str | None:
        """Return the cell of a role; None when there is no row, no column or no value."""
        column = getattr(self.columns, role)
        value = row.cells[column] if row is not None and column else ""
        return None if value.lower() in ("", "?", "unknown", "nan") else value


class _ByKey(Generic[T]):
    """Labels or boxes under a key of any kind, found for an image."""

    def __init__(self, table: Mapping[str, T]) -> None:
        self.table = dict(table)
        self.names = _Names((key, key) for key in table)
        self.used: set[str] = set()

    def find(self, image: _Image, study: str) -> T | None:
        """Return the value of the image, or of its study."""
        ids = image.ids()
        keys = [ids.get("sop_uid", ""), ids.get("accession", ""), ids.get("study_uid", ""), study]
        keys = [key for key in keys if key in self.table] or self.names.find(image.file.relative)
        self.used.update(keys)
        return self.table[keys[0]] if keys else None


# --- pairing ----------------------------------------------------------------------------------------


def pair(
    source: Path,
    *,
    table: Path | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Path | None = None,
    boxes: Path | None = None,
    images_without_report: Literal["keep", "skip"] = "keep",
    map_headers: Headers = map,
) -> Pairing:
    """Match the images below a folder with the rows of its tables.

    A row belongs to an image by accession number, StudyInstanceUID, SOPInstanceUID, file name (path, name or
    stem) or the name of a folder, the first that holds. An image without report is kept with an empty text: it
    serves evaluation by labels, and trainers pass it over. A damaged file is kept too, so that the reader can name
    its fault. The patient is the table's group or patient column, else the header's PatientID, else a folder such as
    ``patient00007``, else the study.

    Args:
        source: folder of DICOM or raster images.
        table: report table; found in the source if None.
        columns: role to column name where the guess is wrong.
        labels: label table; ``labels.*`` or ``*_labels.*`` in the source if None.
        boxes: box table; ``boxes.*`` or ``*_boxes.*`` in the source if None.
        images_without_report: ``"skip"`` lists them and makes no item.
        map_headers: a ``map``, for example of a process pool, over which headers are read.

    Raises:
        UsageError: the source is not a folder.
        BadTable: no table, more than one candidate, a column that does not exist, or a patient in two splits.
    """
    files = discover(source)
    table, labels, boxes = _find_tables(source, files, table, labels, boxes)
    unpaired = [
        Unpaired(f"{f.kind}_file", file_token(f.path)) for f in files if f.kind in ("other", "outside")
    ]
    images = _images(files, map_headers, unpaired)
    reports = _Table(table, columns) if table else None
    matches = _match_all(reports, images, unpaired) if reports else [("none", None)] * len(images)
    by_labels = _ByKey(read_labels(labels) if labels else {})
    by_boxes = _ByKey(read_boxes(boxes) if boxes else {})
    items: list[Item] = []
    for image, (method, row) in zip(images, matches, strict=True):
        if method == "refused":
            continue
        study = _study(reports, row, image)
        keyed = (reports.get(row, "study") if reports else None) or study
        item = Item(
            path=image.file.path,
            patient="",
            study=study,
            report=row.text if row else "",
            method=method,
            view=(reports.get(row, "view") if reports else None)
            or (image.header.view if image.header else None),
            laterality=(reports.get(row, "laterality") if reports else None)
            or (image.header.laterality if image.header else None),
            split=reports.columns.split_of(row.cells) if reports and row else None,
            labels={**(row.labels if row else {}), **(by_labels.find(image, keyed) or {})},
            boxes=by_boxes.find(image, keyed) or (),
            modality=image.header.modality if image.header else "",
        )
        if not item.report:
            unpaired.append(Unpaired("image_without_report", file_token(item.path)))
        if item.report or images_without_report == "keep":
            items.append(replace(item, patient=_own_patient(reports, row) or ""))
    kept = {item.path for item in items}
    notes: list[str] = []
    if reports:
        unpaired += _unused_rows(reports, source)
    unpaired += [Unpaired("labels_without_image")] * len(by_labels.table.keys() - by_labels.used)
    unpaired += [Unpaired("boxes_without_image")] * len(by_boxes.table.keys() - by_boxes.used)
    headers = {image.file.path: image.header for image in images if image.file.path in kept}
    items = _splits(_patients(items, headers, source, notes))
    return Pairing(
        tuple(items),
        tuple(unpaired),
        _shown(reports.columns) if reports else {},
        tuple(line for line in reports.columns.explain() if not line.endswith(": none")) if reports else (),
        tuple(notes),
    )


def _shown(columns: Columns) -> dict[str, str]:
    roles = (
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
    values = {role: getattr(columns, role) for role in roles}
    return {role: " + ".join(v) if isinstance(v, tuple) else v for role, v in values.items() if v}


def _find_tables(
    source: Path, files: Sequence[SourceFile], table: Path | None, labels: Path | None, boxes: Path | None
) -> tuple[Path | None, Path | None, Path | None]:
    here = [f.path for f in files if f.kind == "table" and f.path.parent == source]

    def named(word: str) -> list[Path]:
        return [path for path in here if path.stem.lower() == word or path.stem.lower().endswith(f"_{word}")]

    special = {path for word in ("labels", "boxes", "truth") for path in named(word)}
    labels = labels or next(iter(named("labels")), None)
    boxes = boxes or next(iter(named("boxes")), None)
    rest = [path for path in here if path not in special and path not in (labels, boxes)]
    if table is None:
        preferred = [path for stem in _TABLE_STEMS for path in rest if path.stem.lower() == stem]
        if not preferred and len(rest) > 1:
            raise BadTable(
                f"the source holds {len(rest)} tables that could hold the reports.",
                hint="Name one: table=PATH.",
            )
        table = next(iter(preferred or rest), None)
    if table is None and labels is None:
        raise BadTable(
            f"no report table was found among {len(files)} files of the source.",
            hint="Name one: table=PATH. Allowed are CSV, TSV and Parquet.",
        )
    return table, labels, boxes


def _read_header(path: Path) -> DicomHeader | None:
    """Return the header, or None where reading the image will say what is wrong."""
    try:
        return read_header(path, lenient=True)
    except InputError:
        return None


def _images(files: Sequence[SourceFile], map_headers: Headers, unpaired: list[Unpaired]) -> list[_Image]:
    """Read the headers; leave out objects without pixels and files that claim one UID for different things."""
    dicom = [file for file in files if file.kind == "dicom"]
    headers = dict(zip(dicom, map_headers(_read_header, [file.path for file in dicom]), strict=True))
    images = []
    for file in files:
        header = headers.get(file)
        if header is not None and not header.rows and not header.has_pixels:
            unpaired.append(Unpaired("no_image_object", file_token(file.path)))
        elif file.kind in ("dicom", "raster", "damaged"):
            images.append(_Image(file, header))
    refused = _clashes(images, unpaired)
    return [image for image in images if image.file not in refused]


def _clashes(images: Sequence[_Image], unpaired: list[Unpaired]) -> set[SourceFile]:
    refused: set[SourceFile] = set()
    by_sop: dict[str, list[_Image]] = defaultdict(list)
    by_study: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        if image.header is not None:
            by_sop[image.header.sop_uid].append(image)
            by_study[image.header.study_uid].append(image)
    for uid, group in by_sop.items():
        if uid and len(group) > 1:
            same = len({_pixel_hash(image.file.path) for image in group}) == 1
            for image in group[1:] if same else group:
                refused.add(image.file)
                reason = "duplicate_file" if same else "same_uid_different_pixels"
                unpaired.append(Unpaired(reason, file_token(image.file.path)))
    for uid, group in by_study.items():
        people = {image.header.patient_id for image in group if image.header is not None} - {""}
        if uid and len(people) > 1:
            for image in group:
                if image.file not in refused:
                    refused.add(image.file)
                    unpaired.append(Unpaired("one_study_of_two_patients", file_token(image.file.path)))
    return refused


def _pixel_hash(path: Path) -> str:
    """Hash the pixel element as it lies in the file; a file that cannot be read equals no other."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
            part10.stream.seek(part10.pixel_start)
            while block := part10.stream.read(1 << 20):
                digest.update(block)
    except InputError:
        digest.update(os.fsencode(path))
    return digest.hexdigest()


def _match_all(
    reports: _Table, images: Sequence[_Image], unpaired: list[Unpaired]
) -> list[tuple[str, _Row | None]]:
    """Give each image its row; refuse what would be a guess."""
    found = [reports.match(image) for image in images]
    named: Counter[int] = Counter(id(rows[0]) for method, rows in found if method == "file")
    result: list[tuple[str, _Row | None]] = []
    for image, (method, rows) in zip(images, found, strict=True):
        for row in rows:
            row.used = True
        texts = {text_hash(row.text): row for row in reversed(rows) if row.text}
        refusal = ""
        if len(texts) > 1:
            refusal = "conflicting_reports"
        elif method == "file" and named[id(rows[0])] > len(reports.image_names(rows[0])):
            refusal = "ambiguous_file_name"
        if refusal:
            unpaired.append(Unpaired(refusal, file_token(image.file.path), rows[0].line))
            result.append(("refused", None))
        else:
            result.append((method, next(iter(texts.values()), rows[0] if rows else None)))
    return result


def _unused_rows(reports: _Table, source: Path) -> list[Unpaired]:
    entries = []
    for row in (row for row in reports.rows if not row.used):
        names = reports.image_names(row)
        outside = any(".." in _parts(name) or _leaves(name, source) for name in names)
        reason = (
            "path_outside_source" if outside else "report_without_image" if row.text else "row_without_image"
        )
        entries.append(Unpaired(reason, line=row.line))
    return entries


def _leaves(name: str, source: Path) -> bool:
    return Path(name).is_absolute() and not Path(name).is_relative_to(source.resolve())


def _study(reports: _Table | None, row: _Row | None, image: _Image) -> str:
    if image.header is not None and (image.header.study_uid or image.header.accession):
        return image.header.study_uid or image.header.accession
    if reports is not None and row is not None:
        for role in ("study_uid", "accession", "study"):
            if value := reports.get(row, role):
                return value
        if len(reports.image_names(row)) > 1:
            return f"row {row.line}"
    return image.file.relative


def _own_patient(reports: _Table | None, row: _Row | None) -> str | None:
    return reports.get(row, "patient") if reports is not None else None


_PATIENT_FOLDER = re.compile(r"(?:patient|subject|sub|pat|p)[-_]?\d+", re.IGNORECASE)


def _patients(
    items: Sequence[Item], headers: Mapping[Path, DicomHeader | None], source: Path, notes: list[str]
) -> list[Item]:
    """Fill in the patients that the table does not name, so that no patient gets two keys."""
    told: dict[str, set[str]] = defaultdict(set)
    for item in items:
        header = headers.get(item.path)
        if item.patient and header is not None and header.patient_id:
            told[header.patient_id].add(item.patient)
    counts: Counter[str] = Counter()
    filled = []
    for item in items:
        header = headers.get(item.path)
        own = header.patient_id if header is not None else ""
        folders = PurePosixPath(item.path.relative_to(source).as_posix()).parts[:-1]
        folder = next((part for part in reversed(folders) if _PATIENT_FOLDER.fullmatch(part)), "")
        if item.patient:
            patient, origin = item.patient, "table"
        elif own and len(told.get(own, ())) <= 1:
            patient, origin = next(iter(told.get(own, ())), own), "header"
        elif folder:
            patient, origin = folder, "folder"
        else:
            patient, origin = item.study, "study"
        counts[origin] += 1
        filled.append(replace(item, patient=patient))
    if counts["study"]:
        notes.append(
            f"no patient is known for {counts['study']} images: each study counts as a patient of its own"
        )
    if len(items) > 2 and len({item.patient for item in filled}) == 1:
        notes.append("all images have one patient key: check the patient column or the headers")
    return filled


def _splits(items: list[Item]) -> list[Item]:
    """Give each image of a patient the split that the table gives any of them.

    Raises:
        BadTable: the table puts a patient into two splits.
    """
    told: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.split:
            told[item.patient].add(item.split)
    torn = sum(len(splits) > 1 for splits in told.values())
    if torn:
        raise BadTable(
            f"the split column puts {torn} patients into more than one split.",
            hint="Correct it, or leave it out with columns={'split': ''}.",
        )
    return [replace(item, split=next(iter(told.get(item.patient, ())), None)) for item in items]
