"""DICOM series for tests: slices written from one packaged CT header, 100·i HU painted on slice i."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pydicom
from readingcases import NICOM, golden

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TILT = float(np.radians(22))
TILTED = (1.0, 0.0, 0.0, 0.0, float(np.cos(TILT)), -float(np.sin(TILT)))
UID = "1.2.826.0.1.3680043.9.9999"
SIDE = 16


def write_slice(path: Path, index: int, position: tuple[float, ...], **elements: object) -> Path:
    """Write one 16 × 16 slice of ``100 * index`` HU; ``None`` deletes an element."""
    dataset = pydicom.dcmread(golden("98892001/CT5N/2062"))
    series = elements.pop("series", 1)
    stored = elements.pop("stored", None)
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in position]
    dataset.SOPInstanceUID = f"{UID}.{series}.{index + 1}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = f"{UID}.{series}"
    dataset.StudyInstanceUID = UID
    dataset.InstanceNumber, dataset.AcquisitionNumber = index + 1, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelRepresentation = 1
    if "PixelPaddingValue" in dataset:
        del dataset.PixelPaddingValue
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    if stored is None:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        stored = np.full((SIDE, SIDE), round((100 * index - intercept) / slope))
    stored = np.asarray(stored).astype("<i2")
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def write_series(folder: Path, depths: tuple[float, ...], **elements: object) -> list[Path]:
    """Write axial slices at these z, mm; an element given as a list has one value a slice."""
    paths = []
    for index, z in enumerate(depths):
        own = {k: v[index] if isinstance(v, list) else v for k, v in elements.items()}
        position = own.pop("position", (-72.2, -143.0, z))
        paths.append(write_slice(folder / f"s{index}.dcm", index, position, **own))
    return paths


def tilted(folder: Path) -> list[Path]:
    """Write five slices of a gantry tilted by 22°: the couch moves along z, the planes lean."""
    return write_series(folder, (0, 2.5, 5, 7.5, 10), ImageOrientationPatient=list_of(TILTED))


def list_of(orientation: tuple[float, ...]) -> list[list[str]]:
    """Return an orientation once for each of five slices, as decimal strings."""
    return [[f"{value:.8f}" for value in orientation]] * 5


def enhanced(path: Path) -> Path:
    """Unpack the multi-frame MR of nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.decompress((NICOM / "philips_mprage.dcm.gz").read_bytes()))
    return path
