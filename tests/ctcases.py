"""CT sources for tests: series and NIfTI whose HU are a known function of the place in the patient."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medvl.specs import VolumeSpec

UID = "1.2.826.0.1.3680043.8.498"
SHAPE = (6, 10, 12)
"""Slices, rows, columns."""
SPACING = (4.0, 2.0, 3.0)
"""Millimetres between slices, rows and columns."""
CORNER_LPS = (-12.0, -8.0, 100.0)
"""Centre of the first voxel of the first slice."""
AFFINE = np.array([[-3.0, 0, 0, 12], [0, -2, 0, 8], [0, 0, 4, 100], [0, 0, 0, 1]])
"""Of a series as NIfTI, (column, row, slice) to RAS+ mm."""
PLAIN = VolumeSpec(spacing_mm=None, crop="none")


def place_hu(right: np.ndarray, front: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Return the HU at a place in RAS+ millimetres: three slopes, so that no two axes can be confused."""
    return np.rint(right + 7 * front + 20 * (top - 100)).astype(np.int16)


def axial_hu(zs: Sequence[float], *, shape: tuple[int, int] = SHAPE[1:], hu=place_hu) -> np.ndarray:
    """Return slices at these z, with rows along +y and columns along +x of LPS."""
    rows, columns = shape
    x = CORNER_LPS[0] + SPACING[2] * np.arange(columns)
    y = CORNER_LPS[1] + SPACING[1] * np.arange(rows)
    return np.stack(
        [
            hu(-x[None, :] + 0 * y[:, None], -y[:, None] + 0 * x[None, :], z + 0 * y[:, None] + 0 * x)
            for z in zs
        ]
    )


def write_series(
    folder: Path,
    *,
    study: int,
    series: int,
    zs: Sequence[float] = tuple(100.0 + 4 * k for k in range(SHAPE[0])),
    volume: np.ndarray | None = None,
    patient: str | None = None,
    change: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """Write axial slices at these z, files and instance numbers in an order of their own.

    Args:
        folder: of the files.
        study, series: end their UIDs.
        zs: ImagePositionPatient z of each slice.
        volume: HU, slices × rows × columns; :func:`axial_hu` if None.
        patient: PatientID; one a study if None.
        change: last word on each data set, with the number of its slice.
    """
    volume = axial_hu(zs) if volume is None else volume
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(series).permutation(len(zs))
    paths = []
    for k, z in enumerate(zs):
        dataset = Dataset()
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = f"{UID}.{study}.{series}.{k + 1}"
        dataset.StudyInstanceUID = f"{UID}.{study}"
        dataset.SeriesInstanceUID = f"{UID}.{study}.{series}"
        dataset.FrameOfReferenceUID = f"{UID}.{study}.0"
        dataset.PatientID = patient or f"PAT{study:04d}"
        dataset.PatientName = f"CANARY^NUMBER{study}"
        dataset.PatientBirthDate, dataset.PatientSex = "19500101", "O"
        dataset.AccessionNumber = f"ACC{study:05d}"
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime = str(study), "20200102", "101010"
        dataset.ReferringPhysicianName = ""
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SeriesNumber, dataset.InstanceNumber = series, int(order[k]) + 1
        dataset.PositionReferenceIndicator = ""
        dataset.ImagePositionPatient = [CORNER_LPS[0], CORNER_LPS[1], float(z)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        dataset.Rows, dataset.Columns = volume.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (volume[k].astype(np.int32) + 1024).astype("<i2").tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if change is not None:
            change(dataset, k)
        path = folder / f"im{order[k]:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """Write a NIfTI with both transforms set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows of equal keys as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path
