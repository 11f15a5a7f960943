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
from medvl.preprocess.reading.dicom import DicomHeader, read_header
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import opened
from medvl.preprocess.sources.discovery import SourceFile
from medvl.preprocess.sources.structured import REPORT_CLASSES

__all__ = ["IMAGE_KINDS", "FoundImage", "Map", "find_images"]

IMAGE_KINDS = frozenset({"dicom", "raster", "nifti", "slide", "damaged"})
"""Kinds of files that hold images, or should."""

Map = Callable[[Callable[[Path], DicomHeader | None], Iterable[Path]], Iterable[DicomHeader | None]]
"""The built-in ``map``, or that of a process pool."""


@dataclass(frozen=True)
class FoundImage:
    """A file that should hold an image, with its header: None for a raster image or a damaged file."""

    file: SourceFile
    header: DicomHeader | None

    def ids(self) -> dict[str, str]:
        """Return the identifiers of the header by the role of their columns."""
        header = self.header
        if header is None:
            return {}
        return {"accession": header.accession, "study_uid": header.study_uid, "sop_uid": header.sop_uid}


def find_images(
    files: Sequence[SourceFile], *, map_headers: Map = map
) -> tuple[list[FoundImage], list[tuple[str, SourceFile]]]:
    """Read the headers; return the images, and the files left out with their reasons.

    Reasons: ``structured_report`` (an object that holds a report, to be read as one), ``no_image_object`` (a
    presentation state, a dose report …), ``duplicate_file`` (one
    SOPInstanceUID, equal pixels: the first is kept), ``same_uid_different_pixels`` (none is kept) and
    ``one_study_of_two_patients`` (none is kept).
    """
    dicom = [file for file in files if file.kind == "dicom"]
    headers = dict(zip(dicom, map_headers(header_of, [file.path for file in dicom]), strict=True))
    images: list[FoundImage] = []
    left_out: dict[SourceFile, str] = {}
    for file in files:
        header = headers.get(file)
        if header is not None and not header.rows and not header.has_pixels and not _claims_image(header):
            left_out[file] = "structured_report" if header.sop_class in REPORT_CLASSES else "no_image_object"
        elif file.kind in IMAGE_KINDS:
            images.append(FoundImage(file, header))
    _mark_shared_instances(images, left_out)
    _mark_shared_studies(images, left_out)
    return (
        [image for image in images if image.file not in left_out],
        [(reason, file) for file, reason in left_out.items()],
    )


def header_of(path: Path) -> DicomHeader | None:
    """Return the header, or None where reading the image will say what is wrong."""
    try:
        return read_header(path, lenient=True)
    except InputError:
        return None


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
