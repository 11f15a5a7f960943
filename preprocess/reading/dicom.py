"""A DICOM image in the values of its modality: LUT or rescale, VOI, polarity, spacing, view."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut
from pydicom.tag import BaseTag

from medvl.errors import DecodeError, MultiFrame
from medvl.images import Image, Photometric, Unit
from medvl.preprocess.reading import grey
from medvl.preprocess.reading.decoders import PixelLayout, decode
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits, check_pixels
from medvl.preprocess.reading.part10 import Part10, integer, missing, opened, text, values
from medvl.preprocess.reading.places import pixel_spacing, plane_affine, sources_of

__all__ = ["DicomHeader", "layout_of", "read_dicom", "read_header"]

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
VIEW_CODES = {  # PS3.16 CID 4010, SNOMED CT and the retired SNOMED RT codes
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
    "399173006": "LATERAL",
    "R-10236": "LATERAL",
    "399198007": "LATERAL",
    "R-10232": "LATERAL",
}
PER_FRAME = 0x52009230
"""PerFrameFunctionalGroupsSequence."""
VIEW_WORDS = {"LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL"}


@dataclass(frozen=True)
class DicomHeader:
    """What pairing needs of a header, and nothing more; the identifiers stay in memory.

    Attributes:
        patient_id, accession, study_uid, series_uid, sop_uid, sop_class: "" when not stated.
        names: every person name of the header and its sequences, as it stands.
        study_date: ``YYYYMMDD``, or "".
        modality, body_part: defined terms, or "".
        view, laterality: as in :class:`medvl.images.Image`.
        rows, columns, frames: 0 rows and columns for an object that is no image.
        transfer_syntax: its UID, as declared or as found.
        image_type: values of ImageType, in capitals.
        burned_in: BurnedInAnnotation is YES; None when the header does not say.
        has_pixels: whether a pixel element follows the header.
        notes: repairs.
    """

    patient_id: str
    accession: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str
    body_part: str
    view: str | None
    laterality: str | None
    rows: int
    columns: int
    frames: int
    transfer_syntax: str
    burned_in: bool | None
    has_pixels: bool
    names: tuple[str, ...] = ()
    study_date: str = ""
    image_type: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_header(path: Path, *, limits: Limits = DEFAULT_LIMITS, lenient: bool = False) -> DicomHeader:
    """Read what pairing needs, and no pixel.

    Args:
        path: a DICOM file.
        limits: what it may cost.
        lenient: also take a data set without preamble and prefix.

    Raises:
        InputError: the file is not DICOM, is nested too deeply, or cannot be parsed.
    """
    with opened(path, limits=limits, lenient=lenient) as part10:
        return header_in(part10)


def header_in(part10: Part10) -> DicomHeader:
    """Return what pairing needs of an open file.

    Raises:
        BadElement: an element cannot be read.
    """
    dataset = part10.dataset
    burned = text(dataset, "BurnedInAnnotation").upper()
    return DicomHeader(
        patient_id=text(dataset, "PatientID"),
        accession=text(dataset, "AccessionNumber"),
        study_uid=text(dataset, "StudyInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        sop_uid=text(dataset, "SOPInstanceUID"),
        sop_class=text(dataset, "SOPClassUID"),
        modality=text(dataset, "Modality").upper(),
        body_part=text(dataset, "BodyPartExamined").upper(),
        view=_view(dataset),
        laterality=_laterality(dataset),
        rows=integer(dataset, "Rows", default=0),
        columns=integer(dataset, "Columns", default=0),
        frames=integer(dataset, "NumberOfFrames", default=1),
        transfer_syntax=part10.transfer_syntax,
        burned_in={"YES": True, "NO": False}.get(burned),
        has_pixels=part10.pixel_keyword is not None,
        names=_names(dataset),
        study_date=text(dataset, "StudyDate") or text(dataset, "AcquisitionDate"),
        image_type=tuple(text(dataset, "ImageType").upper().split("\\")),
        notes=part10.remarks,
    )


def read_dicom(
    path: Path, *, limits: Limits = DEFAULT_LIMITS, lenient: bool = False, frame: int | None = None
) -> Image:
    """Read one frame in the values of its modality; nothing is windowed, inverted or resampled.

    Value = slope · stored + intercept, or the modality LUT's entry (PS3.3 C.11.1).

    Args:
        path: a DICOM file.
        limits: what it may cost.
        lenient: also take a data set without preamble, prefix or SOP UIDs.
        frame: which frame of a multi-frame file, from 0.

    Raises:
        InputError: one of its subclasses, naming the broken rule.
    """
    with opened(path, limits=limits, lenient=lenient) as part10:
        layout = layout_of(part10, limits=limits, lenient=lenient)
        chosen = _frame(layout, frame)
        pixels, photometric = decode(part10, layout, frame=chosen)
        dataset, notes = part10.dataset, part10.notes
        sources = sources_of(dataset, chosen)
        spacing, measured = pixel_spacing(sources)
        about: dict[str, Any] = {
            "affine_ras": plane_affine(sources, spacing),
            "spacing_mm": spacing,
            "spacing_frame": measured,
            "view": _view(dataset),
            "laterality": _laterality(dataset),
        }
        if photometric not in MONOCHROME:
            colour = _colour(pixels, photometric, dataset, layout)
            return Image(colour, Unit.RGB8, Photometric.RGB, bits_stored=8, notes=part10.remarks, **about)
        little = part10.little_endian
        _note_polarity(dataset, photometric, notes)
        return Image(
            grey.modality_values(pixels, sources, little_endian=little, bits=layout.bits_stored)[None],
            grey.unit(sources),
            Photometric(photometric),
            windows=grey.windows(sources, notes),
            voi_lut=grey.voi_lut(sources, little_endian=little),
            bits_stored=layout.bits_stored,
            padding=grey.padding_range(sources, signed=layout.signed, notes=notes),
            notes=part10.remarks,
            **about,
        )


def layout_of(part10: Part10, *, limits: Limits, lenient: bool) -> PixelLayout:
    """Return how the pixels of an open file are to be read.

    Raises:
        IncompleteDicom: an element that an image needs is missing.
        BadElement: elements contradict one another.
        PixelLimit: more pixels than the limit.
    """
    dataset = part10.dataset
    if not lenient:
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if not text(dataset, keyword):
                raise missing(keyword)
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    allocated = integer(dataset, "BitsAllocated")
    if part10.pixel_keyword is None:
        raise missing("PixelData")
    stored = integer(dataset, "BitsStored", default=allocated)
    layout = PixelLayout(
        rows=rows,
        columns=columns,
        frames=integer(dataset, "NumberOfFrames", default=1) or 1,
        samples=integer(dataset, "SamplesPerPixel", default=1),
        photometric=text(dataset, "PhotometricInterpretation").upper(),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=integer(dataset, "HighBit", default=stored - 1),
        signed=integer(dataset, "PixelRepresentation", default=0),
        planar=integer(dataset, "PlanarConfiguration", default=0),
    )
    layout.check()
    check_pixels(rows, columns, frames=layout.frames, samples=layout.samples, limits=limits)
    return layout


def _frame(layout: PixelLayout, frame: int | None) -> int:
    if frame is None and layout.frames > 1:
        raise MultiFrame(
            f"the file holds {layout.frames} frames.",
            hint=f"Choose one with frame=0 … {layout.frames - 1}.",
        )
    chosen = frame or 0
    if not 0 <= chosen < layout.frames:
        raise MultiFrame(f"frame {chosen} was asked for; the file holds frames 0 … {layout.frames - 1}.")
    return chosen


def _colour(
    pixels: Shaped[np.ndarray, "..."], photometric: str, dataset: Dataset, layout: PixelLayout
) -> UInt8[np.ndarray, "3 rows columns"]:
    bits = layout.bits_stored
    if photometric == "PALETTE COLOR":  # PS3.3 C.7.6.3.1.5
        pixels = apply_color_lut(pixels, dataset)
        bits = pixels.dtype.itemsize * 8
    elif photometric != "RGB" or pixels.ndim != 3:
        raise DecodeError(
            f"the photometric interpretation is '{photometric}' with {layout.samples} sample(s) a pixel.",
            hint="Allowed: MONOCHROME1, MONOCHROME2, RGB, YBR_*, PALETTE COLOR.",
        )
    if bits > 8:
        pixels = pixels >> (bits - 8)
    return np.ascontiguousarray(np.moveaxis(pixels[..., :3], -1, 0).astype(np.uint8))


def _note_polarity(dataset: Dataset, photometric: str, notes: list[str]) -> None:
    shape = text(dataset, "PresentationLUTShape").upper()  # PS3.3 C.11.6
    expected = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}[photometric]
    if shape in ("INVERSE", "IDENTITY") and shape != expected:
        notes.append(f"presentation LUT shape {shape} contradicts {photometric}, which is followed")


def _names(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the header and of its sequences; frames hold positions, not people."""
    found: set[str] = set()
    level = [dataset]
    while level:
        below: list[Dataset] = []
        for inner in level:
            for tag in inner.keys():
                if _has_vr(tag, "PN"):
                    value = inner[tag].value
                    found.update(str(name) for name in (value if isinstance(value, MultiValue) else [value]))
                elif _has_vr(tag, "SQ") and tag != PER_FRAME:
                    below += inner[tag].value or []
        level = below
    return tuple(sorted(name for name in found if name and name != "None"))


def _has_vr(tag: BaseTag, vr: str) -> bool:
    return not tag.is_private and dictionary_has_tag(tag) and dictionary_VR(tag) == vr


def _view(dataset: Dataset) -> str | None:
    stated = text(dataset, "ViewPosition").upper()  # PS3.3 C.8.7.1.1.1
    if not stated:
        codes = values(dataset, "ViewCodeSequence")
        return VIEW_CODES.get(text(codes[0], "CodeValue")) if codes else None
    return VIEW_WORDS.get(stated, stated)


def _laterality(dataset: Dataset) -> str | None:
    for keyword in ("ImageLaterality", "Laterality"):
        stated = text(dataset, keyword).upper()
        if stated in ("L", "R", "B"):
            return stated
    return None
