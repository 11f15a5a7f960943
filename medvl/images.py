"""The contract between disk and memory: pixels with their unit, geometry and display rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["Image", "Photometric", "Unit", "VoiLut", "Window"]


class Unit(StrEnum):
    """What a pixel value means."""

    HU = "HU"
    """Hounsfield units."""
    MODALITY_LUT = "modality_lut"
    """The output of the DICOM modality LUT or rescale, in whatever unit the device uses."""
    GREY = "grey"
    """Display grey of a raster file; the largest value of its type is white."""
    RGB8 = "rgb8"
    """Display colour, 8 bits a channel."""


class Photometric(StrEnum):
    """Which end of the grey scale is white (PS3.3 C.7.6.3.1.2)."""

    MONOCHROME1 = "MONOCHROME1"
    MONOCHROME2 = "MONOCHROME2"
    RGB = "RGB"


@dataclass(frozen=True)
class Window:
    """One VOI window in the unit of the image (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: str = "LINEAR"
    """``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID`` (PS3.3 C.11.2.1.3)."""


@dataclass(frozen=True)
class VoiLut:
    """One VOI look-up table (PS3.3 C.11.2.1.1)."""

    first_value: float
    """The input value that maps to the first entry; smaller inputs map there too."""
    entries: Shaped[np.ndarray, " entries"]
    bits: int
    """Bits of an output entry; ``2**bits - 1`` is the brightest."""


@dataclass(frozen=True)
class Image:
    """One image as a reader returns it: values in ``unit``, never resampled, never windowed.

    Rescale, polarity and slice order are established here, from header and position. A
    MONOCHROME1 film is *not* inverted here: the spec inverts it, once, after VOI.

    Attributes:
        array: the values, channels first.
        unit: what a value means.
        photometric: which end of the scale is white.
        affine_ras: voxel index to RAS+ millimetres, if the file states a position.
        spacing_mm: millimetres between neighbouring pixels along each spatial axis, or None.
        spacing_frame: ``"patient"`` or ``"detector"``: where ``spacing_mm`` was measured.
        windows: the windows of the header, first one preferred.
        voi_lut: the VOI look-up table of the header; it goes before the windows.
        view: ``"PA"``, ``"AP"``, ``"LATERAL"``, … if stated.
        laterality: ``"L"``, ``"R"``, ``"B"`` or None.
        bits_stored: significant bits of a stored value; sets the full range of ``GREY``.
        padding: lowest and highest value that only pads the picture to a rectangle, or None.
        notes: repairs that the reader made and says so ("window width 0 taken as 1").
    """

    array: Shaped[np.ndarray, " channels *spatial"]
    unit: Unit
    photometric: Photometric = Photometric.MONOCHROME2
    affine_ras: Float[np.ndarray, "4 4"] | None = None
    spacing_mm: tuple[float, ...] | None = None
    spacing_frame: str | None = None
    windows: tuple[Window, ...] = ()
    voi_lut: VoiLut | None = None
    view: str | None = None
    laterality: str | None = None
    bits_stored: int = 16
    padding: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
