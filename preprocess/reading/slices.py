"""One picture of a DICOM series and where it lies, read from the header alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from pydicom.dataset import Dataset

from medvl.errors import BadElement, InputError
from medvl.images import Unit
from medvl.preprocess.reading import grey
from medvl.preprocess.reading.decoders import PixelLayout, read_native
from medvl.preprocess.reading.dicom import MONOCHROME, layout_of
from medvl.preprocess.reading.geometry import plane_normal
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits
from medvl.preprocess.reading.part10 import (
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    UNDEFINED,
    Part10,
    integer,
    numbers,
    opened,
    text,
)
from medvl.preprocess.reading.places import first_numbers, pixel_spacing, sources_of

__all__ = ["Plain", "Slice", "slices_in", "slices_of"]

ELSEWHERE = ("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Elements that scale the pixels in another way than the rescale of the header."""


@dataclass(frozen=True)
class Plain:
    """Where the pixels of an uncompressed slice lie and how they are scaled, so that its header is read once.

    Attributes:
        start: first byte of the pixels.
        size: of the file.
        layout: of the pixels.
        slope, intercept: of the rescale.
        unit: of the result.
    """

    start: int
    size: int
    layout: PixelLayout
    slope: float
    intercept: float
    unit: Unit

    @classmethod
    def of(cls, part10: Part10, layout: PixelLayout) -> Plain | None:
        """Return the place of the pixels, or None for a file that is not as plain as that."""
        dataset = part10.dataset
        plain = (
            part10.transfer_syntax in (IMPLICIT_LITTLE, EXPLICIT_LITTLE)
            and part10.pixel_keyword == "PixelData"
            and layout.frames == layout.samples == 1
            and layout.bits_allocated in (8, 16)
            and layout.photometric in MONOCHROME
            and layout.frame_bytes <= min(part10.pixel_length, part10.pixel_bytes_left)
            and not any(keyword in dataset for keyword in ELSEWHERE)
        )
        if not plain or part10.pixel_length == UNDEFINED:
            return None
        try:
            slope, intercept = grey.rescale([dataset])
            return cls(part10.pixel_start, part10.size, layout, slope, intercept, grey.unit([dataset]))
        except BadElement:
            return None  # whoever reads the pixels is told

    def read(self, path: Path) -> Shaped[np.ndarray, "rows columns"] | None:
        """Return the values of the modality; None where the file is not as it was.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != self.size:
                    return None
                kind = "ui"[self.layout.signed]
                stored = read_native(stream, self.layout, start=self.start, kind=kind, little_endian=True)
        except OSError as error:
            raise InputError(f"the file cannot be read: {error.strerror}.") from error
        bits = self.layout.bits_stored
        return grey.rescaled(stored, slope=self.slope, intercept=self.intercept, bits=bits)


@dataclass(frozen=True)
class Slice:
    """One picture of a series: where it lies in space and in which file. No pixels.

    Attributes:
        path: the file; ``frame`` the frame in it, from 0.
        study_uid, series_uid, sop_uid: as the header has them; they stay in memory.
        acquisition: AcquisitionNumber, or None.
        rows, columns, frames: of the file; ``frames`` is above 1 where no frame says where it lies.
        position, orientation: ImagePositionPatient and ImageOrientationPatient, LPS, mm.
        spacing_mm: between rows, and between columns.
        thickness_mm: SliceThickness; it says nothing of the spacing.
        localizer, colour: what kind of picture it is.
        frame_of_reference: FrameOfReferenceUID; positions of one are positions of the same space.
        plain: how its pixels are read without the header, if they can be.
    """

    path: Path
    frame: int
    study_uid: str
    series_uid: str
    sop_uid: str
    acquisition: float | None
    rows: int
    columns: int
    frames: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    localizer: bool
    colour: bool
    frame_of_reference: str = ""
    plain: Plain | None = field(default=None, compare=False, repr=False)


def slices_of(path: Path, *, limits: Limits = DEFAULT_LIMITS, lenient: bool = False) -> tuple[Slice, ...]:
    """Return the slices of one file; () for an object without pixels.

    Frames get their places from the functional groups (PS3.3 C.7.6.16), or from
    GridFrameOffsetVector (PS3.3 C.8.8.3.2). A cine or an ultrasound loop has none of both, and
    comes back as one slice without a place.

    Raises:
        InputError: the file is not DICOM, or its header breaks a rule.
    """
    with opened(path, limits=limits, lenient=lenient) as part10:
        return slices_in(part10, path, limits=limits, lenient=lenient)


def slices_in(
    part10: Part10, path: Path, *, limits: Limits = DEFAULT_LIMITS, lenient: bool = False
) -> tuple[Slice, ...]:
    """Return the slices of an open file; see :func:`slices_of`.

    Raises:
        InputError: the header breaks a rule.
    """
    if part10.pixel_keyword is None:
        return ()
    layout = layout_of(part10, limits=limits, lenient=lenient)
    dataset = part10.dataset
    first = _slice(path, 0, dataset, layout.frames, colour=layout.photometric not in MONOCHROME)
    if layout.frames == 1:
        return (replace(first, plain=Plain.of(part10, layout)),)
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return tuple(_slice(path, frame, dataset, 1, colour=first.colour) for frame in range(layout.frames))
    offsets = numbers(dataset, "GridFrameOffsetVector")
    if len(offsets) != layout.frames or first.position is None or first.orientation is None:
        return (replace(first, position=None),)
    return tuple(_on_grid(first, offsets))


def _slice(path: Path, frame: int, dataset: Dataset, frames: int, *, colour: bool) -> Slice:
    sources = sources_of(dataset, frame)
    thickness = first_numbers(sources, "SliceThickness", count=1)
    acquisition = numbers(dataset, "AcquisitionNumber")
    return Slice(
        path=path,
        frame=frame,
        study_uid=text(dataset, "StudyInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
        acquisition=acquisition[0] if acquisition else None,
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        frames=frames,
        position=first_numbers(sources, "ImagePositionPatient", count=3),
        orientation=first_numbers(sources, "ImageOrientationPatient", count=6),
        spacing_mm=pixel_spacing(sources)[0],
        thickness_mm=thickness[0] if thickness else None,
        localizer="LOCALIZER" in text(dataset, "ImageType").upper().split("\\"),
        colour=colour,
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
    )


def _on_grid(first: Slice, offsets: tuple[float, ...]) -> Iterator[Slice]:
    normal = plane_normal(first.orientation or (0.0,) * 6)
    start = first.position
    for frame, offset in enumerate(offsets):
        place = None
        if normal is not None and start is not None:
            relative = offsets[0] == 0  # else the offsets are z coordinates of transverse planes
            moved = np.array(start) + offset * normal if relative else (start[0], start[1], offset)
            place = tuple(float(value) for value in moved)
        yield replace(first, frame=frame, frames=1, position=place)
