"""DICOM segmentation objects: which series they outline, and the voxels of each segment (PS3.3 C.8.20)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from pydicom.dataset import Dataset

from medvl.errors import BadAffine, BadImage, MultiFrame
from medvl.preprocess.reading.decoders import PixelLayout, decode
from medvl.preprocess.reading.dicom import layout_of
from medvl.preprocess.reading.geometry import plane_normal
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits, check_voxels
from medvl.preprocess.reading.part10 import Part10, numbers, opened, text, values
from medvl.preprocess.reading.places import LPS_TO_RAS, first_numbers, sources_of

__all__ = [
    "LABELMAP",
    "SEGMENTATIONS",
    "Grid",
    "Segmentation",
    "frames_of",
    "read_segmentation",
    "segments_in",
]

LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", LABELMAP})
"""SOP classes of segmentations, and of label maps (PS3.4 B.5)."""

_ON_GRID = 0.05
"""A frame may lie this far from a place of the grid, in frames."""
_MOST_PIXELS = 2**36
"""Of all frames together; they are read one at a time, and the size of the file is limited."""


@dataclass(frozen=True)
class Segmentation:
    """What the header of a segmentation says.

    Attributes:
        series: SeriesInstanceUIDs that it refers to.
        names: number of a segment to its name: its label, or the meaning of its code where that says more.
        study, frame_of_reference: their UIDs; "" where they are not stated.
    """

    series: tuple[str, ...]
    names: Mapping[int, str]
    study: str = ""
    frame_of_reference: str = ""


def segments_in(part10: Part10) -> Segmentation:
    """Return the series that an open segmentation refers to and the names of its segments.

    A label that says nothing ("Segment 1") gives way to the meaning of the segment's type and to its
    laterality (PS3.3 C.8.20.4).

    Raises:
        BadElement: an element cannot be read.
    """
    dataset = part10.dataset
    referenced = [text(item, "SeriesInstanceUID") for item in values(dataset, "ReferencedSeriesSequence")]
    names = {}
    for item in values(dataset, "SegmentSequence"):
        number = numbers(item, "SegmentNumber")
        if number:
            names[int(number[0])] = _name(item)
    return Segmentation(
        tuple(uid for uid in referenced if uid),
        names,
        text(dataset, "StudyInstanceUID"),
        text(dataset, "FrameOfReferenceUID"),
    )


def _name(segment: Dataset) -> str:
    label = text(segment, "SegmentLabel")
    coded = values(segment, "SegmentedPropertyTypeCodeSequence")
    meaning = text(coded[0], "CodeMeaning") if coded else ""
    if label and not label.casefold().startswith(("segment", "label", "roi")):
        return label
    modifiers = values(coded[0], "SegmentedPropertyTypeModifierCodeSequence") if coded else []
    return " ".join([meaning, *(text(modifier, "CodeMeaning") for modifier in modifiers)]).strip() or label


@dataclass(frozen=True)
class Grid:
    """The regular stack on which the frames lie.

    Attributes:
        shape: planes, rows, columns.
        planes: of each frame.
        affine_ras: (plane, row, column) to RAS+ mm.
    """

    shape: tuple[int, int, int]
    planes: tuple[int, ...]
    affine_ras: Float[np.ndarray, "4 4"]


def read_segmentation(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Grid:
    """Return the grid on which the frames of a segmentation lie.

    Args:
        path: a DICOM file of one of :data:`SEGMENTATIONS`.
        limits: what the grid may cost.

    Raises:
        MultiFrame: frames that do not say where they lie, or do not lie on one regular stack.
        BadAffine: an orientation that is none.
        InputError: the file cannot be read.
    """
    with opened(path, limits=limits) as part10:
        return _grid(part10.dataset, _layout(part10), limits=limits)


def frames_of(
    path: Path, grid: Grid, *, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[int, int, Shaped[np.ndarray, "rows columns"]]]:
    """Yield the frames of a segmentation one by one: number of the segment, plane, voxels.

    A frame of a binary segmentation belongs to the one segment that it names, and its voxels say whether
    that is there; of a fractional one they say so from half of its maximum. A frame of a label map holds the
    numbers of all segments, and comes under segment 0.

    Raises:
        MultiFrame: a frame that names no segment.
        InputError: the file cannot be read.
    """
    with opened(path, limits=limits) as part10:
        dataset, layout = part10.dataset, _layout(part10)
        most = numbers(dataset, "MaximumFractionalValue") or (255.0,)
        least = most[0] / 2 if text(dataset, "SegmentationType") == "FRACTIONAL" else 1
        labels = text(dataset, "SOPClassUID") == LABELMAP
        for frame, plane in enumerate(grid.planes):
            single = layout.bits_allocated == 1
            pixels = _bits(part10, layout, frame) if single else decode(part10, layout, frame=frame)[0]
            yield (0, plane, pixels) if labels else (_segment(dataset, frame), plane, pixels >= least)


def _layout(part10: Part10) -> PixelLayout:
    frame_by_frame = replace(DEFAULT_LIMITS, max_pixels=_MOST_PIXELS)
    return layout_of(part10, limits=frame_by_frame, lenient=True)


def _grid(dataset: Dataset, layout: PixelLayout, *, limits: Limits) -> Grid:
    positions, orientation, spacing, between = [], None, None, None
    for frame in range(layout.frames):
        sources = sources_of(dataset, frame)
        position = first_numbers(sources, "ImagePositionPatient", count=3)
        own = first_numbers(sources, "ImageOrientationPatient", count=6)
        spacing = spacing or first_numbers(sources, "PixelSpacing", count=2)
        between = between or first_numbers(sources, "SpacingBetweenSlices", count=1)
        if position is None or own is None or spacing is None:
            raise MultiFrame("the frames of the segmentation do not say where they lie.")
        if orientation is not None and not np.allclose(own, orientation, atol=1e-3):
            raise MultiFrame("the frames of the segmentation are not parallel.")
        positions.append(position)
        orientation = orientation or own
    normal = plane_normal(orientation) if orientation else None
    if normal is None or orientation is None or spacing is None:
        raise BadAffine("the orientation of the segmentation is not two perpendicular unit vectors.")
    depths = np.array(positions) @ normal
    distinct = np.unique(np.round(depths, 3))
    step = float(between[0]) if between and between[0] > 0 else 0.0
    if len(distinct) > 1:
        least = float(np.diff(distinct).min())
        step = step if 0 < step < 1.5 * least else least
    step = step or 1.0
    places = (depths - depths.min()) / step
    if np.abs(places - np.rint(places)).max() > _ON_GRID * max(1.0, places.max() / 20):
        raise MultiFrame("the frames of the segmentation lie on no regular stack.")
    planes = tuple(int(place) for place in np.rint(places))
    shape = (max(planes) + 1, layout.rows, layout.columns)
    check_voxels(*shape, limits=limits)
    affine = np.eye(4)
    affine[:3, 0] = normal * (float(depths.max() - depths.min()) / max(planes) if max(planes) else step)
    affine[:3, 1] = np.array(orientation[3:]) * spacing[0]
    affine[:3, 2] = np.array(orientation[:3]) * spacing[1]
    affine[:3, 3] = positions[int(np.argmin(depths))]
    return Grid(shape, planes, LPS_TO_RAS @ affine)


def _segment(dataset: Dataset, frame: int) -> int:
    number = first_numbers(sources_of(dataset, frame), "ReferencedSegmentNumber", count=1)
    if number is None:
        raise MultiFrame(f"frame {frame} of the segmentation names no segment.")
    return int(number[0])


def _bits(part10: Part10, layout: PixelLayout, frame: int) -> UInt8[np.ndarray, "rows columns"]:
    """Unpack one bit a pixel, least significant first, frames without padding in between (PS3.5 8.2)."""
    count = layout.rows * layout.columns
    first, skip = divmod(frame * count, 8)
    part10.stream.seek(part10.pixel_start + first)
    data = part10.stream.read(math.ceil((skip + count) / 8))
    if part10.pixel_length == 0xFFFFFFFF or len(data) * 8 < skip + count:
        raise BadImage("the bits of the segmentation are compressed, or cut short.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=skip + count, bitorder="little")
    return bits[skip:].reshape(layout.rows, layout.columns)
