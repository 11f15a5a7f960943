"""Which image belongs to which report: files found, headers read, rows matched, and all that has no partner.

Nothing is dropped silently: each file and row is an item or an entry of ``Pairing.unpaired`` with its
reason. Identifiers stay in memory; ``summary`` and ``lines`` hold counts alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medvl.preprocess.columns import ROLES, Columns, Overrides
from medvl.preprocess.dicom import DicomHeader, read_header
from medvl.preprocess.discovery import SourceFile, discover
from medvl.preprocess.labels import read_boxes, read_labels
from medvl.preprocess.limits import DEFAULT_LIMITS
from medvl.preprocess.matching import ByKey, FoundImage, ReportTable, Row, path_parts
from medvl.preprocess.part10 import opened

from medvl.errors import BadTable, InputError, file_token
from medvl.records import Box, LabelState
from medvl.specs import text_hash

__all__ = ["Item", "Pairing", "SourceFile", "Unpaired", "discover", "pair"]

Headers = Callable[[Callable[[Path], DicomHeader | None], Iterable[Path]], Iterable[DicomHeader | None]]

_TABLE_STEMS = ("reports", "report", "images", "metadata", "studies", "data")


@dataclass(frozen=True)
class Item:
    """One image with all that its record needs from outside the pixels.

    Attributes:
        path: below the source as it was given.
        patient, study: keys to be pseudonymised; a split must not tear a patient apart.
        report: "" when there is none.
        method: how the row was found: ``accession``, ``study_uid``, ``sop_uid``, ``file``, ``folder`` or
            ``none``.
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


# --- pairing ----------------------------------------------------------------------------------------


def pair(
    source: Path,
    *,
    table: Path | None = None,
    columns: Overrides | None = None,
    labels: Path | None = None,
    boxes: Path | None = None,
    images_without_report: Literal["keep", "skip"] = "keep",
    map_headers: Headers = map,
) -> Pairing:
    """Match the images below a folder with the rows of its tables.

    A row belongs to an image by accession number, StudyInstanceUID, SOPInstanceUID, file name (path, name or
    stem) or the name of a folder, the first that holds. An image without report is kept with an empty
    text: it serves evaluation by labels, and trainers pass it over. A damaged file is kept too, so that
    the reader can name its fault. The patient is the table's group or patient column, else the header's
    PatientID, else a folder such as ``patient00007``, else the study.

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
    reports = ReportTable.read(table, columns) if table else ReportTable(Columns(), [])
    matches = _match_all(reports, images, unpaired)
    by_labels = ByKey(read_labels(labels) if labels else {})
    by_boxes = ByKey(read_boxes(boxes) if boxes else {})
    found: list[tuple[Item, DicomHeader | None]] = []
    for image, (method, row) in zip(images, matches, strict=True):
        if method == "refused":
            continue
        item = _item(reports, by_labels, by_boxes, image, method, row)
        if not item.report:
            unpaired.append(Unpaired("image_without_report", file_token(item.path)))
        if item.report or images_without_report == "keep":
            found.append((item, image.header))
    unpaired += _unused_rows(reports, source)
    unpaired += [Unpaired("labels_without_image")] * len(by_labels.unused())
    unpaired += [Unpaired("boxes_without_image")] * len(by_boxes.unused())
    items, notes = _patients(found, source)
    explain = tuple(line for line in reports.columns.explain() if not line.endswith(": none"))
    return Pairing(tuple(_splits(items)), tuple(unpaired), _shown(reports.columns), explain, tuple(notes))


def _item(
    reports: ReportTable,
    labels: ByKey[dict[str, LabelState]],
    boxes: ByKey[tuple[Box, ...]],
    image: FoundImage,
    method: str,
    row: Row | None,
) -> Item:
    study = _study(reports, row, image)
    key = reports.get(row, "study") or study
    header = image.header
    return Item(
        path=image.file.path,
        patient=reports.get(row, "patient") or "",
        study=study,
        report=row.text if row else "",
        method=method,
        view=reports.get(row, "view") or (header.view if header else None),
        laterality=reports.get(row, "laterality") or (header.laterality if header else None),
        split=reports.columns.split_of(row.cells) if row else None,
        labels={**(row.labels if row else {}), **(labels.find(image, key) or {})},
        boxes=boxes.find(image, key) or (),
        modality=header.modality if header else "",
    )


def _shown(columns: Columns) -> dict[str, str]:
    values = {role: getattr(columns, role) for role in ROLES}
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


def _images(files: Sequence[SourceFile], map_headers: Headers, unpaired: list[Unpaired]) -> list[FoundImage]:
    """Read the headers; leave out objects without pixels and files that claim one UID for different things."""
    dicom = [file for file in files if file.kind == "dicom"]
    headers = dict(zip(dicom, map_headers(_read_header, [file.path for file in dicom]), strict=True))
    images = []
    for file in files:
        header = headers.get(file)
        if header is not None and not header.rows and not header.has_pixels:
            unpaired.append(Unpaired("no_image_object", file_token(file.path)))
        elif file.kind in ("dicom", "raster", "damaged"):
            images.append(FoundImage(file, header))
    refused = _clashes(images, unpaired)
    return [image for image in images if image.file not in refused]


def _clashes(images: Sequence[FoundImage], unpaired: list[Unpaired]) -> set[SourceFile]:
    refused: set[SourceFile] = set()
    by_sop: dict[str, list[FoundImage]] = defaultdict(list)
    by_study: dict[str, list[FoundImage]] = defaultdict(list)
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
    reports: ReportTable, images: Sequence[FoundImage], unpaired: list[Unpaired]
) -> list[tuple[str, Row | None]]:
    """Give each image its row; refuse what would be a guess."""
    found = [reports.match(image) for image in images]
    named: Counter[int] = Counter(id(rows[0]) for method, rows in found if method == "file")
    result: list[tuple[str, Row | None]] = []
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


def _unused_rows(reports: ReportTable, source: Path) -> list[Unpaired]:
    entries = []
    for row in (row for row in reports.rows if not row.used):
        names = reports.image_names(row)
        outside = any(".." in path_parts(name) or _leaves(name, source) for name in names)
        reason = (
            "path_outside_source" if outside else "report_without_image" if row.text else "row_without_image"
        )
        entries.append(Unpaired(reason, line=row.line))
    return entries


def _leaves(name: str, source: Path) -> bool:
    return Path(name).is_absolute() and not Path(name).is_relative_to(source.resolve())


def _study(reports: ReportTable, row: Row | None, image: FoundImage) -> str:
    if image.header is not None and (image.header.study_uid or image.header.accession):
        return image.header.study_uid or image.header.accession
    if row is not None:
        for role in ("study_uid", "accession", "study"):
            if value := reports.get(row, role):
                return value
        if len(reports.image_names(row)) > 1:
            return f"row {row.line}"
    return image.file.relative


_PATIENT_FOLDER = re.compile(r"(?:patient|subject|sub|pat|p)[-_]?\d+", re.IGNORECASE)


def _patients(found: Sequence[tuple[Item, DicomHeader | None]], source: Path) -> tuple[list[Item], list[str]]:
    """Fill in the patients that the table does not name, so that no patient gets two keys."""
    told: dict[str, set[str]] = defaultdict(set)
    for item, header in found:
        if item.patient and header is not None and header.patient_id:
            told[header.patient_id].add(item.patient)
    unknown = 0
    items = []
    for item, header in found:
        patient = item.patient
        own = header.patient_id if header is not None else ""
        if (
            not patient and own and len(told.get(own, ())) <= 1
        ):  # an id of several table patients names nobody
            patient = next(iter(told.get(own, ())), own)
        patient = patient or _patient_folder(item.path.relative_to(source))
        unknown += not patient
        items.append(replace(item, patient=patient or item.study))
    notes = []
    if unknown:
        notes.append(f"no patient is known for {unknown} images: each study counts as a patient of its own")
    if len(items) > 2 and len({item.patient for item in items}) == 1:
        notes.append("all images have one patient key: check the patient column or the headers")
    return items, notes


def _patient_folder(relative: Path) -> str:
    return next((part for part in reversed(relative.parts[:-1]) if _PATIENT_FOLDER.fullmatch(part)), "")


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
