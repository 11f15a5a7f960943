"""Which image belongs to which report: files found, headers read, rows matched, and all that has no partner.

Nothing is dropped silently: each file and row is an item or an entry of ``Pairing.unpaired`` with its
reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medvl.errors import BadTable, file_token
from medvl.preprocess.reading.dicom import DicomHeader
from medvl.preprocess.sources.choice import Tables, choose_tables, read_reports
from medvl.preprocess.sources.columns import ROLES, Columns, Overrides, split_name
from medvl.preprocess.sources.dicomdir import check_dicomdirs, folder_of
from medvl.preprocess.sources.discovery import SourceFile, discover
from medvl.preprocess.sources.headers import FoundImage, Map, find_images
from medvl.preprocess.sources.identifiers import calendar
from medvl.preprocess.sources.items import ROW_HEADER, Item, Pairing
from medvl.preprocess.sources.labels import read_boxes, read_labels
from medvl.preprocess.sources.masks import Masks, find_masks
from medvl.preprocess.sources.matching import Match, ReportTable, merged
from medvl.preprocess.sources.names import ByKey
from medvl.preprocess.sources.rows import Row, Unpaired
from medvl.preprocess.sources.texts import gather
from medvl.preprocess.sources.volumes import VOLUMES, VolumeSource, volumes_of, with_masks
from medvl.records import Box, LabelState

__all__ = ["RADIOGRAPHS", "ROW_HEADER", "Item", "Pairing", "SourceFile", "Unpaired", "discover", "pair"]

RADIOGRAPHS = frozenset({"dicom", "raster", "damaged"})
"""Kinds of files that a pipeline of radiographs reads."""

_NO_IMAGES = ("other", "outside", "unreadable", "archive")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_FOREIGN = tuple(".xls .ods .doc .docx .odt .rtf .pdf .json .jsonl .xml .sav .dta .mdb .accdb".split())
_MIN_ID = 4


def pair(
    source: Path,
    *,
    table: Path | None = None,
    columns: Overrides | None = None,
    labels: Path | None = None,
    boxes: Path | None = None,
    map_headers: Map = map,
    kinds: frozenset[str] = RADIOGRAPHS,
    volumes: VolumeSource | None = None,
) -> Pairing:
    """Match the images below a folder with the reports of its tables, text files, messages and SR objects.

    A report belongs to an image by accession number, StudyInstanceUID, SOPInstanceUID, file name (path, name
    or stem) or the name of a folder, the first that holds; then by an accession number of another form;
    last by patient and day. An image without report is kept with an empty text: it serves evaluation by
    labels, and trainers pass it over. A damaged file is kept too, so that the reader can name its fault. The
    patient is the table's group or patient column, else the header's PatientID, else a folder such as
    ``patient00007``, else the study.

    Args:
        source: folder of images, or the DICOMDIR in it.
        table: report table; found in the source if None.
        columns: role to column name where the guess is wrong.
        labels: label table; ``labels.*`` or ``*_labels.*`` in the source if None.
        boxes: box table; ``boxes.*`` or ``*_boxes.*`` in the source if None.
        map_headers: a ``map``, for example of a process pool, over which headers are read.
        kinds: kinds of image files to take, of ``dicom raster nifti slide damaged``. A TIFF is a slide where
            slides are taken and raster images are not.
        volumes: put DICOM slices together to series, take NIfTI, and look for masks; boxes are then in RAS+
            millimetres, and ``kinds`` those of volumes.

    Raises:
        UsageError: the source is not a folder.
        BadTable: no report at all, more than one candidate table, a column that does not exist, or a patient
            in two splits.
    """
    source = folder_of(source)
    kinds = kinds if volumes is None else VOLUMES
    files = [_as_slide(file, kinds) for file in discover(source)]
    images, left_out, segmented = find_images(files, map_headers=map_headers, volumes=volumes is not None)
    masks = Masks()
    if volumes is not None:
        masks = find_masks(files, segmented, folder=volumes.masks, structures=volumes.structures)
        files = [file for file in files if file.path not in masks.taken]
        images = volumes_of([image for image in images if image.file.path not in masks.taken])
    tables = choose_tables(source, files, table=table, labels=labels, boxes=boxes, columns=columns)
    structured = [file for reason, file in left_out if reason == "structured_report"]
    left_out = [(reason, file) for reason, file in left_out if reason != "structured_report"]
    left_out += [(_why_no_image(file), file) for file in files if file.kind in _NO_IMAGES]
    left_out += [("not_a_radiograph", image.file) for image in images if image.file.kind not in kinds]
    images = [image for image in images if image.file.kind in kinds]
    unpaired = [Unpaired(reason, file_token(file.path), path=file.path) for reason, file in left_out]
    lost, notes = check_dicomdirs(files)
    given = {path.resolve() for path in tables.paths()}
    gathered = gather([file for file in files if file.path.resolve() not in given], structured)
    unpaired += [*lost, *gathered.unpaired]
    notes += gathered.notes
    reports, *more_tables = read_reports(tables, columns)
    sources = [
        reports,
        *more_tables,
        *(ReportTable(Columns(), rows) for rows in gathered.rows.values() if rows),
    ]
    found, refused = _matched(images, sources, tables, millimetres=volumes is not None)
    found, strange = _without_viewers(found, files)
    unpaired += [*refused, *strange]
    if (
        not tables.paths()
        and not any(item.report for item, _ in found)
        and not gathered.rows["hl7"]
        and not structured
    ):
        if not images:
            raise BadTable(
                f"neither an image nor a report was found among {len(files)} files of the source.",
                hint="Give the folder that holds them.",
            )
        notes.append("no report was found: the images are kept without text; name a table with --table PATH")
    silent = tables.table and not (reports.columns.text or reports.columns.labels)
    if silent and not any(item.report for item, _ in found):
        notes.append("no column of the table holds texts: name it with --column text=NAME")
    if not images:
        notes.append("no image was found: give the folder or the archive that holds them")
    unpaired += [
        Unpaired("image_without_report", file_token(i.path), path=i.path) for i, _ in found if not i.report
    ]
    for one in sources:
        unpaired += [*one.unpaired, *one.unused(source)]
        notes += one.notes
    items, more = _patients(found, source)
    items = with_masks(items, masks)
    unpaired += [*masks.unpaired, *masks.unused()]
    notes += masks.notes
    explain = tuple(line for line in reports.columns.explain() if not line.endswith(": none"))
    told = (*notes, *more)
    return Pairing(tuple(_splits(items)), tuple(unpaired), _shown(reports.columns), explain, told, source)


def _why_no_image(file: SourceFile) -> str:
    foreign = file.kind == "other" and file.path.suffix.lower() in _FOREIGN
    return "foreign_report" if foreign else f"{file.kind}_file"


def _as_slide(file: SourceFile, kinds: frozenset[str]) -> SourceFile:
    tiff = file.kind == "raster" and file.path.suffix.lower() in (".tif", ".tiff")
    return replace(file, kind="slide") if tiff and "slide" in kinds and "raster" not in kinds else file


def _matched(
    images: Sequence[FoundImage], sources: Sequence[ReportTable], tables: Tables, *, millimetres: bool
) -> tuple[list[tuple[Item, DicomHeader | None]], list[Unpaired]]:
    """Return the items with their headers, and what was refused or left over."""
    by_labels = ByKey(read_labels(tables.labels) if tables.labels else {})
    by_boxes = ByKey(read_boxes(tables.boxes, millimetres=millimetres) if tables.boxes else {})
    found: list[tuple[Item, DicomHeader | None]] = []
    unpaired: list[Unpaired] = []
    gave_way: dict[int, Row] = {}
    for image, *matches in zip(images, *(one.match_all(images) for one in sources), strict=True):
        match = merged(matches)
        if match.refusal:
            line = next((row.line for row in match.rows), 0)
            token = file_token(image.file.path)
            unpaired.append(Unpaired(match.refusal, token, line, image.file.path))
        else:
            found.append((_item(by_labels, by_boxes, image, match), image.header))
            final = match.row is not None and not match.row.preliminary
            rows = [row for one in matches for row in one.rows if row.preliminary and row.text and final]
            gave_way |= {id(row): row for row in rows}
    unpaired += [
        Unpaired("superseded_report", file_token(row.path) if row.path else "", row.line, row.path)
        for row in gave_way.values()
    ]
    unpaired += [Unpaired("labels_without_image")] * len(by_labels.unused())
    unpaired += [Unpaired("boxes_without_image")] * len(by_boxes.unused())
    return found, unpaired


def _without_viewers(
    found: Sequence[tuple[Item, DicomHeader | None]], files: Sequence[SourceFile]
) -> tuple[list[tuple[Item, DicomHeader | None]], list[Unpaired]]:
    """Leave out the logos and icons of a medium: pictures that nothing names, below a DICOMDIR's folder."""
    media = [file.path.parent for file in files if file.kind == "dicomdir"]
    strange = [
        item
        for item, _ in found
        if item.path.suffix.lower() in _PICTURES
        and item.method == "none"
        and not (item.labels or item.boxes)
        and any(item.path.is_relative_to(folder) for folder in media)
    ]
    known = {item.path for item in strange}
    unpaired = [Unpaired("picture_of_a_medium", file_token(i.path), path=i.path) for i in strange]
    return [pair for pair in found if pair[0].path not in known], unpaired


def _item(
    labels: ByKey[dict[str, LabelState]],
    boxes: ByKey[tuple[Box, ...]],
    image: FoundImage,
    match: Match,
) -> Item:
    row, header = match.row, image.header
    stated = [match.get(role) for role in ("sop_uid", "accession", "study_uid", "study")]
    keys = [*image.ids().values(), *stated]
    told: dict[str, LabelState] = {}
    for one in reversed(match.rows):
        told |= one.labels
    return Item(
        path=image.file.path,
        patient=next(
            (who for one in match.rows if one.origin == "table" and (who := one.get("patient"))), ""
        ),
        study=_study(match, image),
        report=row.text if row else "",
        method=match.method,
        view=match.get("view") or (header.view if header else None),
        laterality=match.get("laterality") or (header.laterality if header else None),
        split=split_name(match.get("split")),
        labels={**told, **(labels.find(image.file.relative, keys) or {})},
        boxes=boxes.find(image.file.relative, keys) or (),
        modality=header.modality if header else "",
        kind=image.file.kind,
        line=row.line if row else 0,
        study_date=_study_date(match, header),
        series=image.series,
        stack=image.stack,
        names=_persons(match, header),
        ids=_identifiers(match, header),
    )


def _study_date(match: Match, header: DicomHeader | None) -> str | None:
    days, _ = calendar([header.study_date if header else "", match.get("date")])
    return next((day.strftime("%Y%m%d").rjust(8, "0") for day in days if day), None)


def _persons(match: Match, header: DicomHeader | None) -> tuple[str, ...]:
    told = [name for row in match.rows for name in (*row.names, *row.get("name").split("\n"))]
    stated = header.names if header is not None else ()
    return tuple(dict.fromkeys(name for name in (*stated, *told) if name.strip()))


def _identifiers(match: Match, header: DicomHeader | None) -> tuple[str, ...]:
    stated = (header.patient_id, header.accession) if header is not None else ()
    told = [row.get(role) for row in match.rows for role in ("patient", "accession", "study")]
    noted = [found for row in match.rows for found in row.ids]
    several = (*stated, *told, *noted)
    return tuple(dict.fromkeys(found for found in several if len(found.strip()) >= _MIN_ID))


def _shown(columns: Columns) -> dict[str, str]:
    values = {role: getattr(columns, role) for role in ROLES}
    return {role: " + ".join(v) if isinstance(v, tuple) else v for role, v in values.items() if v}


def _study(match: Match, image: FoundImage) -> str:
    if image.header is not None and (image.header.study_uid or image.header.accession):
        return image.header.study_uid or image.header.accession
    for role in ("study_uid", "accession", "study"):
        if value := match.get(role):
            own = match.get("patient") if role == "study" and match.method == "folder" else ""
            return f"{own}/{value}" if own else value  # each patient may have a study1
    row = match.rows[0] if match.rows else None
    if row is not None and row.origin == "table" and len(row.images) > 1:
        return f"row {row.line}" + (f" of {row.path.name}" if row.path else "")
    folder, _, _ = image.file.relative.rpartition("/")
    if match.method == "folder" and row is not None and row.folder == folder:
        return folder
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
