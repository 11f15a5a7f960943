"""A label map as a DICOM Segmentation: a binary segment for each structure, a frame for each slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import UID, CTImageStorage, SegmentationStorage

from medvl.phantoms.ct_series import CtShot, Frame, common_header
from medvl.phantoms.ct_truth import STRUCTURES
from medvl.phantoms.radiograph import Person

__all__ = ["write_seg"]

_TISSUE, _ANATOMY = ("85756007", "SCT", "Tissue"), ("91723000", "SCT", "Anatomical structure")


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def write_seg(
    frames: Sequence[Frame],
    labels: Sequence[UInt8[np.ndarray, "rows columns"]],
    path: Path,
    person: Person,
    shot: CtShot,
    *,
    series_uid: str,
    sop_uid: str,
    dimension_uid: str,
) -> None:
    """Write a binary segmentation of a series (PS3.3 A.51).

    Args:
        frames: the slices that were segmented.
        labels: the structure numbers of each slice.
        path: the file.
        person: whose it is.
        shot: headers of the segmentation's own series.
        series_uid: of the series that was segmented.
        sop_uid: of the object.
        dimension_uid: of its dimension organization.
    """
    ds = common_header(person, shot, modality="SEG")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    ds.ImageType, ds.InstanceNumber, ds.ContentLabel = ["DERIVED", "PRIMARY"], 1, "STRUCTURES"
    ds.ContentDescription, ds.ContentCreatorName = "Anatomical structures", "PHANTOM"
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "Phantom", "1", "1"
    ds.SegmentationType, ds.SegmentsOverlap, ds.LossyImageCompression = "BINARY", "NO", "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = labels[0].shape
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = ds.PixelRepresentation = 0
    present = [
        (name, number)
        for name, number in STRUCTURES.items()
        if any((part == number).any() for part in labels)
    ]
    ds.SegmentSequence = [_segment(name, order) for order, (name, _) in enumerate(present, 1)]
    organization, places = Dataset(), []
    organization.DimensionOrganizationUID = dimension_uid
    ds.DimensionOrganizationSequence = [organization]
    for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113)):
        pointed = Dataset()
        pointed.DimensionOrganizationUID = dimension_uid
        pointed.DimensionIndexPointer, pointed.FunctionalGroupPointer = pointer, group
        places.append(pointed)
    ds.DimensionIndexSequence = places
    ds.ReferencedSeriesSequence = [_referenced(frames, series_uid)]
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [f"{value:.8f}" for value in frames[0].orientation or ()]
    measures.PixelSpacing = [f"{value:.6g}" for value in frames[0].spacing_mm]
    measures.SliceThickness = f"{shot.thickness_mm:g}"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups, bits = [], []
    for order, (_, number) in enumerate(present, 1):
        for index, (frame, part) in enumerate(zip(frames, labels, strict=True), 1):
            mine = part == number
            if mine.any():
                groups.append(_frame_group(frame, order, index))
                bits.append(mine.ravel())
    ds.PerFrameFunctionalGroupsSequence, ds.NumberOfFrames = groups, len(groups)
    ds.PixelData = bytes(pack_bits(np.concatenate(bits).astype(np.uint8)))
    ds["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _referenced(frames: Sequence[Frame], series_uid: str) -> Dataset:
    """Return the item that names the segmented series and its instances (PS3.3 C.12.2)."""
    series, instances = Dataset(), []
    for frame in frames:
        instance = Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = CTImageStorage, frame.sop_uid
        instances.append(instance)
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = series_uid, instances
    return series


def _segment(name: str, order: int) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = order, name, "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = [_code(*_TISSUE)]
    segment.SegmentedPropertyTypeCodeSequence = [_code(*_ANATOMY)]
    return segment


def _frame_group(frame: Frame, segment: int, index: int) -> Dataset:
    group, place, content, which = Dataset(), Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = [f"{value:.4f}" for value in frame.position or ()]
    content.DimensionIndexValues = [segment, index]
    which.ReferencedSegmentNumber = segment
    group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
    group.SegmentIdentificationSequence = [which]
    return group
