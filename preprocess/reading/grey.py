"""Stored grey values to the values of the modality, and the header's rules for showing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from pydicom.dataset import Dataset

from medvl.errors import BadElement
from medvl.images import Unit, VoiLut, Window
from medvl.preprocess.reading.part10 import numbers, text, values

__all__ = ["modality_values", "padding_range", "rescale", "rescaled", "unit", "voi_lut", "windows"]

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def modality_values(
    stored: Shaped[np.ndarray, "rows columns"], sources: Sequence[Dataset], *, little_endian: bool, bits: int
) -> Shaped[np.ndarray, "rows columns"]:
    """Apply the modality LUT, else the rescale (PS3.3 C.11.1).

    Integral slope and intercept give int16 where the result fits, else int32; others give float32.
    ``stored`` may be overwritten.

    Raises:
        BadElement: a slope of 0, or a slope or intercept that is not finite.
    """
    table = _table(sources, "ModalityLUTSequence", little_endian=little_endian)
    if table is not None:
        return _look_up(stored, table)
    slope, intercept = rescale(sources)
    return rescaled(stored, slope=slope, intercept=intercept, bits=bits)


def rescale(sources: Sequence[Dataset]) -> tuple[float, float]:
    """Return slope and intercept, 1 and 0 where they are not stated.

    Raises:
        BadElement: a slope of 0, or a slope or intercept that is not finite.
    """
    slope = _single(sources, "RescaleSlope", 1.0)
    if slope == 0:
        raise BadElement("RescaleSlope is 0; it must be a finite number other than 0.")
    return slope, _single(sources, "RescaleIntercept", 0.0)


def rescaled(
    stored: Shaped[np.ndarray, "rows columns"], *, slope: float, intercept: float, bits: int
) -> Shaped[np.ndarray, "rows columns"]:
    """Return slope · stored + intercept; the types are those of :func:`modality_values`."""
    if stored.dtype.kind == "f":
        return (stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)).astype(np.float32)
    if not (slope.is_integer() and intercept.is_integer()):
        result = stored.astype(np.float32)
        result *= np.float32(slope)
        result += np.float32(intercept)
        return result
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    integer = _integer_type(low, high, int(slope), int(intercept))
    if integer is not np.int16:  # the stored bits would not fit, but what is there may
        integer = _integer_type(int(stored.min()), int(stored.max()), int(slope), int(intercept))
    if integer is None:
        return (stored * slope + intercept).astype(np.float32)
    if integer is np.int16 and stored.dtype.itemsize == 2:
        result = stored.view(np.int16)  # the same bits: no stored value reaches 2**15
    else:
        result = stored.astype(integer)
    if slope != 1:
        result *= integer(slope)
    if intercept:
        result += integer(intercept)
    return result


def _integer_type(low: int, high: int, slope: int, intercept: int) -> type[np.signedinteger] | None:
    """Return the smallest type that holds the stored range, its products and its results."""
    reached = [end for edge in (low, high) for end in (edge, edge * slope, edge * slope + intercept)]
    for integer in (np.int16, np.int32):
        limits = np.iinfo(integer)
        if limits.min <= min(*reached, slope, intercept) and max(*reached, slope, intercept) <= limits.max:
            return integer
    return None


def _look_up(stored: Shaped[np.ndarray, "rows columns"], table: VoiLut) -> Shaped[np.ndarray, "rows columns"]:
    entries = table.entries.astype(np.int16 if table.entries.max() < 2**15 else np.int32)
    index = stored.astype(np.int32)
    index -= int(table.first_value)
    return entries[np.clip(index, 0, len(entries) - 1, out=index)]


def unit(sources: Sequence[Dataset]) -> Unit:
    """Say what the values mean: HU for CT and for RescaleType HU, else the device's own unit."""
    declared = _first(sources, "RescaleType").upper()  # PS3.3 C.11.1.1.2
    if declared:
        return Unit.HU if declared == "HU" else Unit.MODALITY_LUT
    rescaled = any("RescaleSlope" in source for source in sources)
    return Unit.HU if rescaled and _first(sources, "Modality").upper() == "CT" else Unit.MODALITY_LUT


def windows(sources: Sequence[Dataset], notes: list[str]) -> tuple[Window, ...]:
    """Return the windows of the header, the first one preferred (PS3.3 C.11.2.1.2).

    A width below 1 is taken as 1, an unknown function as LINEAR, and both are noted.
    """
    centers, widths = _all(sources, "WindowCenter"), _all(sources, "WindowWidth")
    if len(centers) != len(widths):
        notes.append(f"{len(centers)} window centers but {len(widths)} widths, the surplus is left out")
    function = _first(sources, "VOILUTFunction").upper().split("\\")[0] or "LINEAR"  # PS3.3 C.11.2.1.3
    if function not in FUNCTIONS:
        notes.append("unknown VOI LUT function taken as LINEAR")
        function = "LINEAR"
    found = []
    for center, width in zip(centers, widths, strict=False):
        if (width < 1 and function == "LINEAR") or width <= 0:  # PS3.3 C.11.2.1.2.1: at least 1, else above 0
            notes.append(f"window width {width:g} taken as 1")
            width = 1.0
        found.append(Window(center, width, function))
    return tuple(found)


def voi_lut(sources: Sequence[Dataset], *, little_endian: bool) -> VoiLut | None:
    """Return the first VOI LUT of the header, which goes before its windows (PS3.3 C.11.2.1.1)."""
    return _table(sources, "VOILUTSequence", little_endian=little_endian)


def padding_range(sources: Sequence[Dataset], *, signed: int, notes: list[str]) -> tuple[float, float] | None:
    """Return the range of modality values that only pad the picture (PS3.3 C.7.5.1.1.2)."""
    ends = [*_all(sources, "PixelPaddingValue")[:1], *_all(sources, "PixelPaddingRangeLimit")[:1]]
    if not ends or any("ModalityLUTSequence" in source for source in sources):
        return None
    if signed:  # written as US by some exporters
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    slope, intercept = _single(sources, "RescaleSlope", 1.0), _single(sources, "RescaleIntercept", 0.0)
    ends = [end * slope + intercept for end in ends]
    notes.append("the header declares padding pixels")
    return min(ends), max(ends)


def _table(sources: Sequence[Dataset], keyword: str, *, little_endian: bool) -> VoiLut | None:
    for source in sources:
        items = values(source, keyword)
        if items:
            return _entries(items[0], keyword, little_endian=little_endian)
    return None


def _entries(item: Dataset, keyword: str, *, little_endian: bool) -> VoiLut:
    descriptor = numbers(item, "LUTDescriptor")
    data = values(item, "LUTData")
    if len(descriptor) != 3 or not data:
        raise BadElement(f"{keyword} lacks its LUTDescriptor of 3 values or its LUTData.")
    count, first, bits = (int(value) for value in descriptor)
    count = count or 2**16  # PS3.3 C.11.1.1.1
    if not 8 <= bits <= 16:
        raise BadElement(f"{keyword} has entries of {bits} bits; allowed: 8 to 16.")
    if isinstance(data[0], bytes):
        wide = len(data[0]) >= 2 * count
        entries = np.frombuffer(data[0], ("<u2" if little_endian else ">u2") if wide else "u1")
    else:
        entries = np.array([int(value) & 0xFFFF for value in data])
    if len(entries) < count:
        raise BadElement(f"{keyword} promises {count} entries and holds {len(entries)}.")
    return VoiLut(float(first), entries[:count].astype(np.uint16), bits)


def _all(sources: Sequence[Dataset], keyword: str) -> tuple[float, ...]:
    for source in sources:
        found = numbers(source, keyword)
        if found:
            return found
    return ()


def _single(sources: Sequence[Dataset], keyword: str, default: float) -> float:
    found = _all(sources, keyword)
    return found[0] if found else default


def _first(sources: Sequence[Dataset], keyword: str) -> str:
    for source in sources:
        found = text(source, keyword)
        if found:
            return found
    return ""
