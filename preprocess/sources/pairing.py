"""Which image belongs to which report: files found, headers read, rows matched, and all that has no partner.

Nothing is dropped silently: each file and row is an item or an entry of ``Pairing.unpaired`` with its
reason. Identifiers stay in memory; ``summary`` and ``lines`` hold counts alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medvl.errors import BadTable, file_token
from medvl.preprocess.reading.dicom import DicomHeader
from medvl.preprocess.sources.columns import ROLES, Columns, Overrides
from medvl.preprocess.sources.discovery import SourceFile, discover
from medvl.preprocess.sources.headers import FoundImage, Map, find_images
from medvl.preprocess.sources.labels import read_boxes, read_labels
from medvl.preprocess.sources.matching import ByKey, Match, ReportTable, Row
from medvl.records import Box, LabelState

__all__ = ["Item", "Pairing", "SourceFile", "Unpaired", "discover", "pair"]

_NO_IMAGES = ("other", "outside", "unreadable")
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
    map_headers: Map = map,
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
        map_headers: a ``map``, for example of a process pool, over which headers are read.

    Raises:
        UsageError: the source is not a folder.
        BadTable: no table, more than one candidate, a column that does not exist, or a patient in two splits.
    """
    files = discover(source)
    table, labels, boxes = _find_tables(source, files, table, labels, boxes)
    images, left_out = find_images(files, map_headers=map_headers)
    left_out += [(f"{file.kind}_file", file) for file in files if file.kind in _NO_IMAGES]
    unpaired = [Unpaired(reason, file_token(file.path)) for reason, file in left_out]
    reports = ReportTable.read(table, columns) if table else ReportTable(Columns(), [])
    by_labels = ByKey(read_labels(labels) if labels else {})
    by_boxes = ByKey(read_boxes(boxes) if boxes else {})
    found: list[tuple[Item, DicomHeader | None]] = []
    for image, match in zip(images, reports.match_all(images), strict=True):
        if match.refusal:
            unpaired.append(Unpaired(match.refusal, file_token(image.file.path), match.line))
        else:
            found.append((_item(reports, by_labels, by_boxes, image, match), image.header))
    unpaired += [Unpaired("image_without_report", file_token(i.path)) for i, _ in found if not i.report]
    unpaired += [Unpaired(reason, line=line) for reason, line in reports.unused(source)]
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
    match: Match,
) -> Item:
    row, header = match.row, image.header
    stated = [reports.get(row, role) or "" for role in ("sop_uid", "accession", "study_uid", "study")]
    keys = [*image.ids().values(), *stated]
    return Item(
        path=image.file.path,
        patient=reports.get(row, "patient") or "",
        study=_study(reports, row, image),
        report=row.text if row else "",
        method=match.method,
        view=reports.get(row, "view") or (header.view if header else None),
        laterality=reports.get(row, "laterality") or (header.laterality if header else None),
        split=reports.columns.split_of(row.cells) if row else None,
        labels={**(row.labels if row else {}), **(labels.find(image.file.relative, keys) or {})},
        boxes=boxes.find(image.file.relative, keys) or (),
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
                hint="Name one: --table PATH.",
            )
        table = next(iter(preferred or rest), None)
    if table is None and labels is None:
        raise BadTable(
            f"no report table was found among {len(files)} files of the source.",
            hint="Name one: --table PATH. Allowed are CSV, TSV and Parquet.",
        )
    return table, labels, boxes


def _study(reports: ReportTable, row: Row | None, image: FoundImage) -> str:
    if image.header is not None and (image.header.study_uid or image.header.accession):
        return image.header.study_uid or image.header.accession
    if row is not None:
        for role in ("study_uid", "accession", "study"):
            if value := reports.get(row, role):
                return value
        if len(reports.image_names(row)) > 1:
            return f"row {row.line}"
    folder, _, _ = image.file.relative.rpartition("/")
    return folder if _STUDY_FOLDER.fullmatch(folder.rpartition("/")[2]) else image.file.relative


_STUDY_FOLDER = re.compile(r"(?:study|s)[-_]?\d+", re.IGNORECASE)
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
        if not patient and own and len(told.get(own, ())) <= 1:  # "ANONYMOUS" is many, so it is nobody
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
            hint="Correct it, or leave it out: --column split= (an empty name).",
        )
    return [replace(item, split=next(iter(told.get(item.patient, ())), None)) for item in items]
