"""The headers of the images found, and files that claim one identifier for two different things."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from medvl.errors import InputError
from medvl.preprocess.reading.dicom import DicomHeader, header_in, read_header
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import opened
from medvl.preprocess.reading.series import Series
from medvl.preprocess.reading.slices import Slice, slices_in
from medvl.preprocess.sources.discovery import SourceFile
from medvl.preprocess.sources.structured import REPORT_CLASSES
from medvl.preprocess.structures_seg import SEGMENTATIONS, Segmentation, segments_in

__all__ = ["IMAGE_KINDS", "FoundImage", "Looked", "Map", "find_images"]

IMAGE_KINDS = frozenset({"dicom", "raster", "nifti", "slide", "damaged"})
"""Kinds of files that hold images, or should."""


@dataclass(frozen=True)
class Looked:
    """What one opening of a DICOM file tells, its pixels left alone.

    Attributes:
        header: None where reading the image will say what is wrong.
        slices: of a volume; () where nobody asked, or where they cannot be read.
        segmentation: of an object that holds masks.
    """

    header: DicomHeader | None = None
    slices: tuple[Slice, ...] = ()
    segmentation: Segmentation | None = None


Map = Callable[[Callable[[Path], Looked], Iterable[Path]], Iterable[Looked]]
"""The built-in ``map``, or that of a process pool."""


@dataclass(frozen=True)
class FoundImage:
    """A file that should hold an image, or a series of slices.

    Attributes:
        file: of a series its first, by path.
        header: None for a raster image, a NIfTI and a damaged file.
        slices: of one file, until :func:`~medvl.preprocess.sources.volumes.volumes_of` makes series of them.
        series: the slices of a volume in order.
        stack: which of the series whose first file this is.
    """

    file: SourceFile
    header: DicomHeader | None
    slices: tuple[Slice, ...] = ()
    series: Series | None = None
    stack: int = 0

    def ids(self) -> dict[str, str]:
        """Return the identifiers of the header by the role of their columns; a volume goes by its series."""
        header = self.header
        if header is None:
            return {}
        own = header.sop_uid if self.series is None else header.series_uid
        return {"accession": header.accession, "study_uid": header.study_uid, "sop_uid": own}


def find_images(
    files: Sequence[SourceFile], *, map_headers: Map = map, volumes: bool = False
) -> tuple[list[FoundImage], list[tuple[str, SourceFile]], list[tuple[SourceFile, Segmentation]]]:
    """Read the headers; return the images, the files left out with their reasons, and the segmentations.

    For volumes the images come with their slices; copies of slices are then the business of their series.

    Reasons: ``structured_report`` (an object that holds a report, to be read as one), ``no_image_object`` (a
    presentation state, a dose report …), ``duplicate_file`` (one
    SOPInstanceUID, equal pixels: the first is kept), ``same_uid_different_pixels`` (none is kept) and
    ``one_study_of_two_patients`` (none is kept).
    """
    dicom = [file for file in files if file.kind == "dicom"]
    look = slices_of_file if volumes else header_of
    told = dict(zip(dicom, map_headers(look, [file.path for file in dicom]), strict=True))
    images: list[FoundImage] = []
    left_out: dict[SourceFile, str] = {}
    masks: list[tuple[SourceFile, Segmentation]] = []
    for file in files:
        looked = told.get(file, Looked())
        header = looked.header
        if looked.segmentation is not None:
            masks.append((file, looked.segmentation))
        elif header is not None and not header.rows and not header.has_pixels and not _claims_image(header):
            left_out[file] = "structured_report" if header.sop_class in REPORT_CLASSES else "no_image_object"
        elif file.kind in IMAGE_KINDS:
            images.append(FoundImage(file, header, looked.slices))
    if not volumes:
        _mark_shared_instances(images, left_out)
    _mark_shared_studies(images, left_out)
    return (
        [image for image in images if image.file not in left_out],
        [(reason, file) for file, reason in left_out.items()],
        masks,
    )


def header_of(path: Path) -> Looked:
    """Read the header alone."""
    try:
        return Looked(read_header(path, lenient=True))
    except InputError:
        return Looked()


def slices_of_file(path: Path) -> Looked:
    """Read the header, and where the slices lie or what is segmented."""
    header: DicomHeader | None = None
    try:
        with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
            header = header_in(part10)
            if header.sop_class in SEGMENTATIONS:
                return Looked(header, segmentation=segments_in(part10))
            return Looked(header, slices_in(part10, path))
    except InputError:
        return Looked(header)


def _claims_image(header: DicomHeader) -> bool:
    """Whether an object without pixels should have them: its header was cut, and the reader says so."""
    return not header.sop_class or "Image Storage" in UID(header.sop_class).name


def _mark_shared_instances(images: Sequence[FoundImage], left_out: dict[SourceFile, str]) -> None:
    by_uid: dict[str, list[SourceFile]] = defaultdict(list)
    for image in images:
        by_uid[image.ids().get("sop_uid", "")].append(image.file)
    for uid, group in by_uid.items():
        if uid and len(group) > 1:
            same = len({_pixel_hash(file.path) for file in group}) == 1
            for file in group[1:] if same else group:
                left_out[file] = "duplicate_file" if same else "same_uid_different_pixels"


def _mark_shared_studies(images: Sequence[FoundImage], left_out: dict[SourceFile, str]) -> None:
    by_uid: dict[str, list[tuple[SourceFile, str]]] = defaultdict(list)
    for image in images:
        if image.header is not None:
            by_uid[image.header.study_uid].append((image.file, image.header.patient_id))
    for uid, group in by_uid.items():
        if uid and len({patient for _, patient in group} - {""}) > 1:
            for file, _ in group:
                left_out.setdefault(file, "one_study_of_two_patients")


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
