"""A phantom's grey levels as a real DICOM radiograph: many encodings, one displayed picture.

A picture is drawn as display levels 0…4095. Each :class:`Encoding` says which stored value shows
each level once modality LUT, VOI LUT and polarity are applied as PS3.4 N.2 orders them; the stored
values are that table, looked up. Nothing in a file depends on the clock.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openjpeg
from jaxtyping import Float64, UInt16
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

__all__ = [
    "LEVELS_SHOWN",
    "Encoding",
    "Person",
    "Shot",
    "draw_encoding",
    "stored_values",
    "to_dataset",
    "uid",
    "write_dicom",
]

LEVELS_SHOWN = 4096
"""Number of display levels of a drawn picture."""

_SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
_PLUGINS = {"rle": "gdcm", "jpegls": "pyjpegls"}
_SYNTAX_CHANCE = {"explicit": 0.55, "implicit": 0.15, "rle": 0.12, "jpegls": 0.10, "jpeg2000": 0.08}
_VOI_CHANCE = {"window": 0.40, "windows": 0.15, "exact": 0.05, "sigmoid": 0.12, "lut": 0.13, "none": 0.15}
_MAKERS = ("Aster Imaging", "Borealis Medical", "Cirrus X-ray")


@dataclass(frozen=True)
class Encoding:
    """How display levels are stored.

    Attributes:
        sop_class: ``"DX"`` or ``"CR"``.
        photometric: ``"MONOCHROME1"`` or ``"MONOCHROME2"``.
        bits_stored: 12 or 16.
        slope, intercept: of the rescale; None where the file has none.
        voi: ``"window"``, ``"windows"`` (two, the first is right), ``"exact"`` (LINEAR_EXACT), ``"sigmoid"``,
            ``"lut"`` or ``"none"``.
        syntax: ``"explicit"``, ``"implicit"``, ``"rle"``, ``"jpegls"`` or ``"jpeg2000"``.
        spacing: ``"pixel"``, ``"imager"``, ``"both"`` or ``"none"``.
    """

    sop_class: str = "DX"
    photometric: str = "MONOCHROME2"
    bits_stored: int = 12
    slope: float | None = None
    intercept: float | None = None
    voi: str = "window"
    syntax: str = "explicit"
    spacing: str = "pixel"


@dataclass(frozen=True)
class Person:
    """A patient who does not exist, with the identifiers that a real header holds."""

    name: str
    patient_id: str
    birth_date: str
    sex: str
    address: str


@dataclass(frozen=True)
class Shot:
    """What one image's header says besides its pixels."""

    study_uid: str
    series_uid: str
    sop_uid: str
    accession: str
    study_date: str
    study_time: str
    number: int
    view: str
    spacing_mm: float
    maker: str
    kvp: int
    referrer: str


def uid(*parts: object) -> str:
    """Return a UID that depends on ``parts`` alone (PS3.5 B.2: 2.25 and a 128-bit integer).

    Examples:
        >>> uid(7, "study", 0) == uid(7, "study", 0)
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return f"2.25.{int.from_bytes(digest, 'big')}"


def draw_encoding(rng: np.random.Generator) -> tuple[Encoding, str, int]:
    """Draw an encoding, a manufacturer and a tube voltage, all independent of the findings."""
    rescaled = rng.random() < 0.5
    bits = 12 if rng.random() < 0.6 else 16
    slope, intercept = ((0.5, -100.0), (2.0, 0.0), (1.0, -1024.0), (0.684, 200.0))[int(rng.integers(4))]
    voi = _choose(rng, _VOI_CHANCE)
    if voi == "lut":
        # a table has at most 65536 entries, and the sign of a negative first value is lost in implicit VR
        bits, slope, intercept = 12, 2.0, 0.0
    encoding = Encoding(
        sop_class="DX" if rng.random() < 0.6 else "CR",
        photometric="MONOCHROME1" if rng.random() < 0.35 else "MONOCHROME2",
        bits_stored=bits,
        slope=slope if rescaled else None,
        intercept=intercept if rescaled else None,
        voi=voi,
        syntax=_choose(rng, _SYNTAX_CHANCE),
        spacing=_choose(rng, {"pixel": 0.4, "imager": 0.35, "both": 0.15, "none": 0.1}),
    )
    return encoding, _MAKERS[int(rng.integers(3))], int(rng.choice((85, 110, 120, 125)))


def _choose(rng: np.random.Generator, chances: dict[str, float]) -> str:
    return list(chances)[int(rng.choice(len(chances), p=list(chances.values())))]


def _span(encoding: Encoding) -> tuple[int, int]:
    """Smallest and largest stored value that shows something."""
    full = 2**encoding.bits_stored - 1
    if encoding.voi == "none":
        return 0, full
    # windows and tables do not begin at the ends of the stored range
    return full // 10, full - full // 16


def stored_values(encoding: Encoding) -> UInt16[np.ndarray, " levels"]:
    """Return the stored value of each display level.

    With ``g`` the displayed share of white before polarity, the stored value is ``low + (high − low)·f(g)``,
    where ``f`` inverts the VOI function: the identity for windows, ``½ − (w/4)·ln(1/g − 1)`` for a
    sigmoid of width ``w`` (PS3.3 C.11.2.1.3.1), the square root for the squared VOI LUT.
    """
    low, high = _span(encoding)
    shown = np.arange(LEVELS_SHOWN) / (LEVELS_SHOWN - 1)
    if encoding.photometric == "MONOCHROME1":
        shown = 1 - shown  # PS3.3 C.7.6.3.1.2: the display inverts after VOI
    if encoding.voi == "sigmoid":
        # the window is 0.4 of the span wide, so the span shows 1/(1 + e^±5) = 0.007…0.993 of white
        clipped = np.clip(shown, 1 / (1 + np.exp(5)), 1 / (1 + np.exp(-5)))
        shown = 0.5 - 0.4 * np.log(1 / clipped - 1) / 4
    elif encoding.voi == "lut":
        shown = np.sqrt(shown)  # the table of to_dataset squares
    return np.rint(low + (high - low) * shown).astype(np.uint16)


def _modality(encoding: Encoding, stored: float) -> float:
    return stored * (encoding.slope if encoding.slope is not None else 1.0) + (encoding.intercept or 0.0)


def to_dataset(
    levels: UInt16[np.ndarray, "rows columns"], encoding: Encoding, person: Person, shot: Shot
) -> tuple[Dataset, UInt16[np.ndarray, "rows columns"]]:
    """Return the DICOM data set of one picture, uncompressed, and its stored pixels.

    Args:
        levels: display levels, 0 black to 4095 white.
        encoding: how they are stored.
        person: whose picture it is.
        shot: identifiers, view and geometry.
    """
    stored = stored_values(encoding)[levels]
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID = (
        DigitalXRayImageStorageForPresentation
        if encoding.sop_class == "DX"
        else ComputedRadiographyImageStorage
    )
    ds.SOPInstanceUID = shot.sop_uid
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = shot.study_date
    ds.StudyTime = shot.study_time
    ds.AccessionNumber = shot.accession
    ds.Modality = encoding.sop_class
    ds.Manufacturer = shot.maker
    ds.InstitutionName = "St. Elsewhere General Hospital"
    ds.ReferringPhysicianName = shot.referrer
    ds.StudyDescription = "XR CHEST"
    ds.SeriesDescription = f"CHEST {shot.view}"
    ds.PatientName = person.name
    ds.PatientID = person.patient_id
    ds.PatientBirthDate = person.birth_date
    ds.PatientSex = person.sex
    ds.PatientAge = f"{int(shot.study_date[:4]) - int(person.birth_date[:4]):03d}Y"
    ds.PatientAddress = person.address
    ds.BodyPartExamined = "CHEST"
    ds.KVP = shot.kvp
    ds.ViewPosition = shot.view
    ds.StudyInstanceUID, ds.SeriesInstanceUID = shot.study_uid, shot.series_uid
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = shot.accession[-6:], shot.number + 1, 1
    ds.PatientOrientation = ["P", "F"] if shot.view == "LL" else ["L", "F"]
    if encoding.sop_class == "DX":
        ds.ImageLaterality = "U"
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.PresentationLUTShape = "INVERSE" if encoding.photometric == "MONOCHROME1" else "IDENTITY"
        ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
        ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, encoding.photometric
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, encoding.bits_stored, encoding.bits_stored - 1
    ds.PixelRepresentation = 0
    _add_spacing(ds, encoding, shot.spacing_mm)
    if encoding.slope is not None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = (
            str(encoding.slope),
            str(encoding.intercept),
            "US",
        )
    _add_voi(ds, encoding)
    ds.PixelData = stored.astype("<u2", copy=False).tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = _SYNTAXES["implicit" if encoding.syntax == "implicit" else "explicit"]
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        ds.SOPClassUID,
        UID(shot.sop_uid),
    )
    return ds, stored


def _add_spacing(ds: Dataset, encoding: Encoding, spacing_mm: float) -> None:
    patient, detector = f"{spacing_mm:.6f}", f"{spacing_mm * 1.1:.6f}"
    if encoding.spacing in ("pixel", "both"):
        ds.PixelSpacing = [patient, patient]
    if encoding.spacing in ("imager", "both"):
        ds.ImagerPixelSpacing = [detector, detector]
    if encoding.spacing == "both":
        ds.PixelSpacingCalibrationType = "GEOMETRY"
        ds.EstimatedRadiographicMagnificationFactor = "1.1"


def _add_voi(ds: Dataset, encoding: Encoding) -> None:
    low, high = _span(encoding)
    first, last = _modality(encoding, low), _modality(encoding, high)
    if encoding.voi == "lut":
        entries = _voi_table(first, last)
        item = Dataset()
        item.LUTDescriptor = [len(entries), int(np.floor(first)), 16]
        item.LUTExplanation = "SQUARED"
        item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
        item["LUTDescriptor"].VR = "US"
        ds.VOILUTSequence = [item]
    elif encoding.voi != "none":
        # PS3.3 C.11.2.1.2.1: LINEAR spans c − ½ ± (w − 1)/2; the others c ± w/2
        linear = encoding.voi in ("window", "windows")
        center, width = (first + last) / 2 + 0.5 * linear, last - first + linear
        if encoding.voi == "sigmoid":
            width *= 0.4
        centers, widths = [center], [width]
        if encoding.voi == "windows":
            centers, widths = [center, center + width / 8], [width, width / 2]
            ds.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]
        ds.WindowCenter = [f"{value:.6g}" for value in centers]
        ds.WindowWidth = [f"{value:.6g}" for value in widths]
        if not linear:
            ds.VOILUTFunction = "SIGMOID" if encoding.voi == "sigmoid" else "LINEAR_EXACT"


def _voi_table(first: float, last: float) -> UInt16[np.ndarray, " entries"]:
    share: Float64[np.ndarray, " entries"] = np.clip(
        (np.arange(np.floor(first), np.ceil(last) + 1) - first) / (last - first), 0, 1
    )
    return np.rint(65535 * share * share).astype(np.uint16)


def write_dicom(ds: Dataset, path: Path, *, encoding: Encoding) -> None:
    """Write a data set as a Part 10 file, compressed if the encoding says so."""
    if encoding.syntax in _PLUGINS:
        ds.compress(
            _SYNTAXES[encoding.syntax], encoding_plugin=_PLUGINS[encoding.syntax], generate_instance_uid=False
        )
    elif encoding.syntax == "jpeg2000":
        # openjpeg directly: pydicom reaches it only through the package pylibjpeg, which is not required
        stream = openjpeg.encode_pixel_data(
            ds.PixelData,
            rows=ds.Rows,
            columns=ds.Columns,
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=ds.BitsStored,
            pixel_representation=ds.PixelRepresentation,
            photometric_interpretation=ds.PhotometricInterpretation,
        )
        ds.PixelData = encapsulate([bytes(stream)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(path, enforce_file_format=True)
