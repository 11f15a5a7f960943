"""The pixels of one file: copied byte by byte, or decoded and painted over where text is burned in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medvl.errors import BurnedInText, DecodeError, TruncatedPixels
from medvl.preprocess.reading.codestreams import fragments
from medvl.preprocess.reading.decoders import decode
from medvl.preprocess.reading.dicom import layout_of, read_dicom
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits
from medvl.preprocess.reading.part10 import EXPLICIT_LITTLE, UNDEFINED, Part10, integer
from medvl.records import TextRegion
from medvl.specs import PixelSpec

__all__ = ["MOST_FRAMES", "Pixels", "Policy", "paint_over", "take_pixels", "words_in_pixels"]

Policy = Literal["off", "keep", "mask", "drop"]

MOST_FRAMES = 8
"""So many frames of a multi-frame file are searched, evenly spread; what is found is masked in all."""
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
_FULL_SIZE = PixelSpec(longest_px=8192)


@dataclass(frozen=True)
class Pixels:
    """What became of the pixels of a file.

    Attributes:
        transfer_syntax: of the file to write.
        regions: found text; () when nobody looked.
        looked: whether the pixels were searched.
        masked: whether they were painted over.
    """

    transfer_syntax: str
    regions: tuple[TextRegion, ...] = ()
    looked: bool = False
    masked: bool = False

    @property
    def text_left(self) -> bool:
        """Whether text that was found is still there; side markers are none."""
        return not self.masked and any(region.kind == "text" for region in self.regions)


def take_pixels(
    path: Path, part10: Part10, dataset: Dataset, *, policy: Policy, limits: Limits = DEFAULT_LIMITS
) -> Pixels:
    """Put the pixels of an open file into a data set, masked if the policy and a finding ask for it.

    Without masking the value is copied as it lies in the file. What exceeds the announced size is cut off,
    and so are bits of overlays inside the pixel words (PS3.3 C.9.2, retired): both can carry writing.

    Args:
        path: the file, for the search.
        part10: the same file, open.
        dataset: receives the pixel element; its pixel description follows when the pixels were decoded.
        policy: ``"off"`` does not search; ``"keep"`` searches and leaves; ``"mask"`` paints over;
            ``"drop"`` refuses.
        limits: what the file may cost.

    Raises:
        BurnedInText: the policy is ``"drop"`` and there is text.
        InputError: the pixels are damaged, or must be decoded and cannot be.
    """
    if part10.pixel_keyword is None:
        return Pixels(part10.transfer_syntax)
    regions: tuple[TextRegion, ...] = ()
    if policy != "off":
        regions = _search(path, part10, limits=limits)
        count = sum(region.kind == "text" for region in regions)
        if count and policy == "drop":
            raise BurnedInText(
                f"the picture holds {count} regions of burned-in text; the policy is drop.",
                hint="Use the policy mask to paint them over, or keep to leave them.",
            )
        if count and policy == "mask":
            paint_over(part10, dataset, regions, limits=limits)
            painted = tuple(dataclasses.replace(each, masked=each.kind == "text") for each in regions)
            return Pixels(EXPLICIT_LITTLE, painted, looked=True, masked=True)
    _copy(part10, dataset)
    return Pixels(part10.transfer_syntax, regions, looked=policy != "off")


def _search(path: Path, part10: Part10, *, limits: Limits) -> tuple[TextRegion, ...]:
    # The reader of words is heavy and optional: only a search for burned-in text needs it.
    from medvl.preprocess.reading.burned import find_text_in

    frames = integer(part10.dataset, "NumberOfFrames", default=1) or 1
    chosen = sorted({round(i * (frames - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)})
    found: dict[TextRegion, None] = {}
    for frame in chosen:
        image = read_dicom(path, limits=limits, lenient=True, frame=frame)
        found.update(dict.fromkeys(find_text_in(image, _FULL_SIZE)))
    return tuple(found)


def paint_over(
    part10: Part10, dataset: Dataset, regions: tuple[TextRegion, ...], *, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Decode every frame of an open file, paint regions over, and put the pixels into a data set.

    Raises:
        DecodeError: the pixels cannot be decoded, or have neither 8, 16 nor 32 bits a value.
    """
    from medvl.preprocess.reading.burned import mask_native

    layout = layout_of(part10, limits=limits, lenient=True)
    if layout.bits_allocated not in (8, 16, 32) or part10.pixel_keyword != "PixelData":
        raise DecodeError(
            f"text was found in pixels of {layout.bits_allocated} bits a value, which cannot be painted over."
        )
    frames = []
    photometric = layout.photometric
    for frame in range(layout.frames):
        stored, photometric = decode(part10, layout, frame=frame)
        frames.append(mask_native(stored, regions))
    pixels = np.stack(frames)
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    bits = pixels.dtype.itemsize * 8
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.HighBit = bits, layout.bits_stored - 1
    if layout.samples > 1:
        dataset.PlanarConfiguration = 0
    dataset.add(DataElement(0x7FE00010, "OB" if bits == 8 else "OW", data + b"\0" * (len(data) % 2)))


def _copy(part10: Part10, dataset: Dataset) -> None:
    part10.stream.seek(part10.pixel_start)
    tag = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008}.get(part10.pixel_keyword or "", 0x7FE00009)
    if part10.pixel_length == UNDEFINED:
        payload = part10.stream.read()
        _, end = fragments(payload)
        if payload[end - 8 : end] == _DELIMITER:
            end -= 8
        element = DataElement(tag, "OB", payload[:end])
        element.is_undefined_length = True
    else:
        payload = part10.stream.read(part10.pixel_length)
        if len(payload) < part10.pixel_length:
            raise TruncatedPixels(
                f"the pixel data hold {len(payload):,} bytes; their header promises {part10.pixel_length:,}.",
                hint="Export the file again; nothing is filled in.",
            )
        vr = part10.pixel_vr or {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag, "OW")
        element = DataElement(tag, vr, _without_extras(payload, part10))
    dataset.add(element)


def _without_extras(payload: bytes, part10: Part10) -> bytes:
    """Return native pixel bytes without what lies behind the last frame and in bits of overlays."""
    dataset = part10.dataset
    if not (dataset.get("Rows") and dataset.get("Columns") and dataset.get("BitsAllocated")):
        return payload
    layout = layout_of(part10, limits=DEFAULT_LIMITS, lenient=True)
    even = layout.total_bytes + layout.total_bytes % 2
    payload = payload[:even]
    # Of unsigned values the bits above the stored ones mean nothing; an overlay may be left in them.
    unused = _overlays_in_pixels(dataset) or not layout.signed
    if unused and layout.bits_stored < layout.bits_allocated == 16 and part10.little_endian:
        keep = ((1 << layout.bits_stored) - 1) << (layout.high_bit + 1 - layout.bits_stored)
        words = np.frombuffer(payload, "<u2") & np.uint16(keep)
        payload = words.astype("<u2").tobytes()
    return payload


def _overlays_in_pixels(dataset: Dataset) -> bool:
    """Whether an overlay plane without data of its own is announced: its bits are in the pixel words."""
    return any(
        (group, 0x0102) in dataset and (group, 0x3000) not in dataset for group in range(0x6000, 0x6020, 2)
    )


def words_in_pixels(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Return the words that can be read in the pixels of a file, for the audit alone: never show them.

    Raises:
        InputError: the pixels cannot be decoded.
        MissingDependency: rapidocr is not installed.
    """
    from medvl.preprocess.reading.burned import read_text

    image = read_dicom(path, limits=limits, lenient=True, frame=0)
    return [words for _, words in read_text(_FULL_SIZE.apply(image))]
