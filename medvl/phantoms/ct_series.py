"""A phantom volume as files: a DICOM series, classic or enhanced, or NIfTI; nothing reads the clock."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from jaxtyping import Float64, Int16, UInt8
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medvl.phantoms.radiograph import Encoding, Person, write_dicom
from medvl.specs.volumes import VolumeGrid

__all__ = [
    "CtShot",
    "Frame",
    "Plane",
    "common_header",
    "frames_of",
    "write_classic",
    "write_enhanced",
    "write_nifti",
]

Plane = Literal["axial", "feet_first", "sagittal", "coronal"]
Stored = Literal["unsigned", "signed", "padded", "halves"]
_PADDING = -2000
_RESCALE: dict[Stored, tuple[float, int]] = {
    "unsigned": (1, -1024),
    "signed": (1, 0),
    "padded": (1, -1024),
    "halves": (0.5, -1024),
}


@dataclass(frozen=True)
class CtShot:
    """What a series' headers say besides its pixels.

    Attributes:
        study_uid, series_uid, accession, study_date, study_time: as in the header.
        number: SeriesNumber.
        description: SeriesDescription.
        kernel: ConvolutionKernel.
        maker: Manufacturer.
        kvp: tube voltage.
        contrast: 1 with a contrast medium.
        thickness_mm: SliceThickness, which need not be the distance of the slices.
        stored: how HU become stored values.
        syntax: ``"explicit"``, ``"implicit"``, ``"rle"``, ``"jpegls"`` or ``"jpeg2000"``.
        referrer: ReferringPhysicianName.
    """

    study_uid: str
    series_uid: str
    accession: str
    study_date: str
    study_time: str
    number: int
    description: str
    kernel: str
    maker: str
    kvp: int
    contrast: int
    thickness_mm: float
    stored: Stored
    syntax: str
    referrer: str


@dataclass(frozen=True)
class Frame:
    """One slice: its HU, and where it lies in LPS millimetres; no place where a header has none."""

    hu: Int16[np.ndarray, "rows columns"]
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float]
    sop_uid: str
    number: int


def frames_of(
    hu: Int16[np.ndarray, "x y z"], grid: VolumeGrid, *, plane: Plane, uids: Sequence[str]
) -> list[Frame]:
    """Cut a volume, whose axes point right, front and top, into the slices of an acquisition.

    Args:
        hu: the values.
        grid: where they lie.
        plane: where columns, rows and slices run: ``"axial"`` left, back, top; ``"feet_first"`` right, back,
            feet; ``"sagittal"`` back, feet, left; ``"coronal"`` left, feet, back.
        uids: a SOPInstanceUID for each slice.
    """
    order, flips = {
        "axial": ((2, 1, 0), (2, 1)),
        "feet_first": ((2, 1, 0), (0, 1)),
        "sagittal": ((0, 2, 1), (0, 1, 2)),
        "coronal": ((1, 2, 0), (0, 1, 2)),
    }[plane]
    turned, affine = hu.transpose(order), np.asarray(grid.affine_ras, np.float64)[:, [*order, 3]]
    for axis in flips:
        turned = np.flip(turned, axis)
        affine = affine.copy()
        affine[:, 3] += affine[:, axis] * (turned.shape[axis] - 1)
        affine[:, axis] *= -1
    lps = affine[:3] * np.array([[-1.0], [-1.0], [1.0]])
    spacing = np.sqrt((lps[:, :3] ** 2).sum(0))
    orientation = (*(lps[:, 2] / spacing[2]).tolist(), *(lps[:, 1] / spacing[1]).tolist())
    return [
        Frame(
            np.ascontiguousarray(turned[index]),
            tuple((lps[:, 3] + index * lps[:, 0]).tolist()),
            tuple(orientation),
            (float(spacing[1]), float(spacing[2])),
            uids[index],
            index + 1,
        )
        for index in range(len(turned))
    ]


def common_header(person: Person, shot: CtShot, *, modality: str = "CT") -> Dataset:
    """Return a data set with patient, study, series and equipment."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = shot.study_date
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = shot.study_time
    ds.AccessionNumber, ds.Modality, ds.Manufacturer = shot.accession, modality, shot.maker
    ds.InstitutionName = "St. Elsewhere General Hospital"
    ds.ReferringPhysicianName = shot.referrer
    ds.StudyDescription, ds.SeriesDescription = "CT CHEST ABDOMEN", shot.description
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = person.name, person.patient_id, person.birth_date
    ds.PatientSex = person.sex
    ds.PatientAge = f"{int(shot.study_date[:4]) - int(person.birth_date[:4]):03d}Y"
    ds.PatientAddress = person.address
    ds.StudyInstanceUID, ds.SeriesInstanceUID = shot.study_uid, shot.series_uid
    ds.StudyID, ds.SeriesNumber, ds.FrameOfReferenceUID = (
        shot.accession[-6:],
        shot.number,
        f"{shot.study_uid[:-4]}7",
    )
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = (
        ImplicitVRLittleEndian if shot.syntax == "implicit" else ExplicitVRLittleEndian
    )
    return ds


def write_classic(
    frames: Sequence[Frame],
    paths: Sequence[Path],
    person: Person,
    shot: CtShot,
    *,
    image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    patient_position: str = "HFS",
) -> None:
    """Write a series of one file a slice."""
    ds = _image_header(person, shot, frames[0], image_type)
    ds.PatientPosition = patient_position
    ds.SliceThickness = f"{shot.thickness_mm:g}"
    slope, intercept = _RESCALE[shot.stored]
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = f"{slope:g}", str(intercept), "HU"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    for frame, path in zip(frames, paths, strict=True):
        each = copy.deepcopy(ds) if shot.syntax in ("rle", "jpegls", "jpeg2000") else ds
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = UID(frame.sop_uid)
        each.InstanceNumber = frame.number
        each.Rows, each.Columns = frame.hu.shape
        each.PixelSpacing = [f"{value:.6g}" for value in frame.spacing_mm]
        if frame.position is not None and frame.orientation is not None:
            each.ImagePositionPatient = [f"{value:.4f}" for value in frame.position]
            each.ImageOrientationPatient = [f"{value:.8f}" for value in frame.orientation]
            each.SliceLocation = f"{frame.position[2]:.4f}"
        each.PixelData = _stored(frame.hu, shot.stored).tobytes()
        each["PixelData"].VR = "OW"
        write_dicom(each, path, encoding=Encoding(syntax=shot.syntax))


def write_enhanced(
    frames: Sequence[Frame], path: Path, person: Person, shot: CtShot, *, sop_uid: str
) -> None:
    """Write an enhanced CT: one file, each slice a frame with its place in a functional group."""
    ds = _image_header(person, shot, frames[0], ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    ds.InstanceNumber, ds.NumberOfFrames = 1, len(frames)
    ds.AcquisitionDateTime = shot.study_date + shot.study_time
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = (
        "MONOCHROME",
        "VOLUME",
        "NONE",
    )
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.PresentationLUTShape = "NO", "00", "IDENTITY"
    slope, intercept = _RESCALE[shot.stored]
    shared = Dataset()
    measures, plane, values, kind = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [f"{value:.6g}" for value in frames[0].spacing_mm]
    measures.SliceThickness = f"{shot.thickness_mm:g}"
    plane.ImageOrientationPatient = [f"{value:.8f}" for value in frames[0].orientation or ()]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = f"{slope:g}", str(intercept), "HU"
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    kind.PixelPresentation, kind.VolumetricProperties = "MONOCHROME", "VOLUME"
    kind.VolumeBasedCalculationTechnique = "NONE"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence, shared.CTImageFrameTypeSequence = [values], [kind]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [
        _frame_group(frame, index) for index, frame in enumerate(frames, 1)
    ]
    ds.PixelData = b"".join(_stored(frame.hu, shot.stored).tobytes() for frame in frames)
    ds["PixelData"].VR = "OW"
    write_dicom(ds, path, encoding=Encoding(syntax=shot.syntax))


def _frame_group(frame: Frame, index: int) -> Dataset:
    place, content, group = Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = [f"{value:.4f}" for value in frame.position or ()]
    content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = 1, "1", index
    content.DimensionIndexValues = [1, index]
    group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
    return group


def _image_header(person: Person, shot: CtShot, frame: Frame, image_type: Sequence[str]) -> Dataset:
    ds = common_header(person, shot)
    ds.ImageType = list(image_type)
    ds.BodyPartExamined, ds.KVP, ds.ConvolutionKernel = "CHEST", shot.kvp, shot.kernel
    ds.AcquisitionNumber = 1
    if shot.contrast:
        ds.ContrastBolusAgent = "IOHEXOL"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = frame.hu.shape
    signed = shot.stored in ("signed", "padded")
    bits = 12 if shot.stored == "unsigned" else 16
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    if shot.stored == "padded":
        ds.PixelPaddingValue = _PADDING
    ds.WindowCenter, ds.WindowWidth = ["40", "-600"], ["400", "1500"]
    return ds


def _stored(hu: Int16[np.ndarray, "rows columns"], stored: Stored) -> np.ndarray:
    """Return stored values; beyond the field of a padded picture lies padding, as some scanners leave it."""
    slope, intercept = _RESCALE[stored]
    values = np.rint((hu.astype(np.int32) - intercept) / slope).astype(np.int32)
    if stored == "padded":
        rows, columns = (np.arange(size) - (size - 1) / 2 for size in hu.shape)
        values[(rows[:, None] ** 2 + columns[None] ** 2) > (0.5 * min(hu.shape)) ** 2] = _PADDING
        return values.astype("<i2")
    return values.astype("<i2" if stored == "signed" else "<u2")


def write_nifti(
    values: Int16[np.ndarray, "x y z *t"] | UInt8[np.ndarray, "x y z"],
    affine_ras: Float64[np.ndarray, "4 4"],
    path: Path,
    *,
    flips: Sequence[int] = (),
    offset: int = 0,
) -> None:
    """Write a NIfTI-1 volume.

    Args:
        values: HU or numbers.
        affine_ras: voxel index to RAS mm.
        path: ends in ``.nii.gz``.
        flips: axes to store the other way round; the affine follows.
        offset: taken off the values and given back by the header's intercept.
    """
    affine = np.asarray(affine_ras, np.float64).copy()
    for axis in flips:
        values = np.flip(values, axis)
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
    image = nibabel.Nifti1Image(np.ascontiguousarray(values - values.dtype.type(offset)), affine)
    image.header.set_xyzt_units("mm", "sec")
    raw = bytearray(image.to_bytes())
    # the slope is set in the bytes: nibabel would rescale the values to go with it
    raw[112:120] = np.array([1.0, float(offset)], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw), 4, mtime=0))
