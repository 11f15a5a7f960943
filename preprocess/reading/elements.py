"""The elements of a little-endian data set, read in blocks: four times as fast as element by element.

They are pydicom's own raw elements, and whatever is out of the ordinary is left to pydicom: a sequence of
undefined length and a value longer than a block one by one, an unknown VR or another byte order altogether.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

__all__ = ["read_elements"]

BLOCK_BYTES = 2**15
UNDEFINED = 0xFFFFFFFF
ITEM_GROUP = 0xFFFE
CHARSET = BaseTag(0x00080005)
LONG = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_32}
SHORT = {vr.value.encode(): vr.value for vr in VR if len(vr.value) == 2 and vr.value not in LONG.values()}
LITTLE_ENDIAN, IS_RAW, IS_BUFFERED = True, True, False
EXPLICIT, IMPLICIT, LENGTH = struct.Struct("<HH2sH"), struct.Struct("<HHL"), struct.Struct("<L")
Stop = Callable[[int, str | None, int], bool]


def read_elements(stream: Any, *, implicit: bool, little: bool, stop: Stop) -> Dataset:
    """Return the data set from here to the first element for which ``stop`` says so, or to the end.

    The stream is left where that element begins.

    Args:
        stream: at the first element.
        implicit: as the transfer syntax says.
        little: likewise.
        stop: of tag, VR (None where it is implicit) and length.
    """
    start = stream.tell()
    try:
        found = _quick(stream, implicit=implicit, stop=stop) if little else None
    except EOFError:  # what there is of a data set that is cut short is pydicom's to judge
        found = None
    if found is not None:
        return found
    stream.seek(start)
    return read_dataset(cast(BinaryIO, stream), implicit, little, stop_when=stop)


def _quick(stream: Any, *, implicit: bool, stop: Stop) -> Dataset | None:
    elements: dict[BaseTag, RawDataElement | DataElement] = {}
    base, at, new = stream.tell(), 0, tuple.__new__  # a third faster than the constructor
    block = stream.read(BLOCK_BYTES)
    if implicit == (block[4:6].isalpha() and block[4:6].isupper()):
        return None  # explicit under an implicit syntax, or the reverse
    while True:
        if at + 12 > len(block):
            base, at, block = _next_block(stream, base + at)
            if len(block) < 12:
                raise EOFError
        begin = at + 8
        if implicit:
            group, element, length = IMPLICIT.unpack_from(block, at)
            vr = None
        else:
            group, element, code, length = EXPLICIT.unpack_from(block, at)
            vr = SHORT.get(code)
            if vr is None:
                vr, length, begin = LONG.get(code), LENGTH.unpack_from(block, begin)[0], at + 12
        tag = group << 16 | element
        if group == ITEM_GROUP or (vr is None and not implicit):
            return None
        if stop(tag, vr, length):
            stream.seek(base + at)
            return _dataset(elements, implicit=implicit)
        end = begin + length
        if length == UNDEFINED or end > len(block):
            odd = _one(stream, base + at, encoding=_encoding(elements), implicit=implicit)
            elements[odd.tag] = odd
            base, at, block = _next_block(stream, stream.tell())
            continue
        value = block[begin:end] if length else cast(bytes | None, empty_value_for_VR(vr, raw=True))
        key = BaseTag(tag)
        raw = (key, vr, length, value, base + begin, implicit, LITTLE_ENDIAN, IS_RAW, IS_BUFFERED)
        elements[key] = new(RawDataElement, raw)
        at = end


def _next_block(stream: Any, place: int) -> tuple[int, int, bytes]:
    stream.seek(place)
    return place, 0, stream.read(BLOCK_BYTES)


def _one(stream: Any, place: int, *, encoding: Any, implicit: bool) -> RawDataElement | DataElement:
    stream.seek(place)
    for element in data_element_generator(stream, implicit, LITTLE_ENDIAN, encoding=encoding):
        return element
    raise EOFError


def _encoding(elements: dict[BaseTag, RawDataElement | DataElement]) -> Any:
    charset = elements.get(CHARSET)
    if charset is None:
        return default_encoding
    value = convert_raw_data_element(charset).value if isinstance(charset, RawDataElement) else charset.value
    return convert_encodings(value)


def _dataset(elements: dict[BaseTag, RawDataElement | DataElement], *, implicit: bool) -> Dataset:
    dataset = Dataset(cast(Any, elements), parent_encoding=default_encoding)
    dataset.set_original_encoding(implicit, LITTLE_ENDIAN, _encoding(elements))
    return dataset
