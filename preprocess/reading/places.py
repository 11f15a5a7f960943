"""Where a frame lies: the macros that may say so, its spacing, its position and its orientation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydicom.dataset import Dataset

from medvl.preprocess.reading.part10 import numbers, text, values

__all__ = ["LPS_TO_RAS", "first_numbers", "pixel_spacing", "plane_affine", "sources_of"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's axes run to the left and the back (PS3.3 C.7.6.2.1.1), those of this package right and front."""


def sources_of(dataset: Dataset, frame: int) -> list[Dataset]:
    """Return the places where an attribute may stand: the frame's own macros, the shared ones, the header."""
    per_frame = values(dataset, "PerFrameFunctionalGroupsSequence")
    groups = [*per_frame[frame : frame + 1], *values(dataset, "SharedFunctionalGroupsSequence")[:1]]
    macros = [
        values(group, element.keyword)[:1] for group in groups for element in group if element.VR == "SQ"
    ]
    return [*(item for macro in macros for item in macro), dataset]


def pixel_spacing(sources: Sequence[Dataset]) -> tuple[tuple[float, ...] | None, str | None]:
    """Return row and column spacing, and where it holds: patient or detector (PS3.3 10.7.1)."""
    detector = _pair(sources, "ImagerPixelSpacing")
    patient = _pair(sources, "PixelSpacing")
    calibrated = any(text(source, "PixelSpacingCalibrationType") for source in sources)
    if patient and (calibrated or patient != detector):
        return patient, "patient"
    if detector:
        return detector, "detector"
    scanned = _pair(sources, "NominalScannedPixelSpacing")  # a digitised film: at the film's plane
    return (scanned, "detector") if scanned else (None, None)


def _pair(sources: Sequence[Dataset], keyword: str) -> tuple[float, ...] | None:
    found = first_numbers(sources, keyword, count=2)
    return found if found and min(found) > 0 else None


def first_numbers(sources: Sequence[Dataset], keyword: str, *, count: int) -> tuple[float, ...] | None:
    """Return the first value of an element that has ``count`` numbers; None when no source has one."""
    return next((found for s in sources if len(found := numbers(s, keyword)) == count), None)


def plane_affine(
    sources: Sequence[Dataset], spacing: tuple[float, ...] | None
) -> Float[np.ndarray, "4 4"] | None:
    """Return (row, column, slice) to RAS+ mm (PS3.3 C.7.6.2.1.1), LPS turned to RAS."""
    position = first_numbers(sources, "ImagePositionPatient", count=3)
    orientation = first_numbers(sources, "ImageOrientationPatient", count=6)
    if position is None or orientation is None or spacing is None:
        return None
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = along_column * spacing[0]
    affine[:3, 1] = along_row * spacing[1]
    affine[:3, 2] = np.cross(along_row, along_column)
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine
