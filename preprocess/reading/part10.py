"""A DICOM file opened safely: prefix, deflate bombs, nesting, and where its pixels lie."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom.config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medvl.errors import BadElement, IncompleteDicom, InputError, MedvlError, NestingLimit, NotDicom
from medvl.preprocess.reading.elements import read_elements
from medvl.preprocess.reading.limits import Limits, check_bytes, inflate

__all__ = [
    "UNDEFINED",
    "Part10",
    "check_depth",
    "integer",
    "missing",
    "numbers",
    "opened",
    "text",
    "values",
]

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
PIXEL_TAGS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
UNDEFINED = 0xFFFFFFFF
PLAIN_NUMBERS = re.compile(rb"[ +\-0-9.eE]+(?:\\[ +\-0-9.eE]+)*[ \0]*")
"""A decimal or integer string of one or more values (PS3.5 6.2), as it stands in the file."""
PLAIN_WORD = re.compile(rb"[ A-Za-z0-9_.]+[ \0]*")
"""A code string or an identifier of one value."""
ITEM_BYTES = 16
"""The least that one level of nesting takes: the header of a sequence and that of its item."""


@dataclass
class Part10:
    """An open file: the elements before the pixels, and the stream that holds the pixels."""

    dataset: Dataset
    stream: io.BufferedIOBase
    size: int
    transfer_syntax: str
    little_endian: bool
    pixel_keyword: str | None = None
    pixel_vr: str | None = None
    pixel_length: int = 0
    """Declared bytes of the pixel element; ``0xFFFFFFFF`` when it is encapsulated."""
    pixel_start: int = 0
    notes: list[str] = field(default_factory=list)
    caught: list[warnings.WarningMessage] = field(default_factory=list)
    """What pydicom warned of so far; its words may quote the header, so they are never passed on."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """The repairs made so far; complete once every element has been read."""
        charset = any("encoding" in str(warning.message) for warning in self.caught)
        told = ["character set not as declared, unreadable characters replaced"] if charset else []
        return (*self.notes, *told)

    @property
    def pixel_bytes_left(self) -> int:
        """Bytes from the start of the pixel value to the end of the file."""
        return self.size - self.pixel_start


@contextmanager
def opened(path: Path, *, limits: Limits, lenient: bool = False) -> Iterator[Part10]:
    """Open a DICOM file, read what stands before its pixels, and keep the stream open.

    Args:
        path: the file.
        limits: what it may cost.
        lenient: also take a data set that lacks the 128-byte preamble and the ``DICM`` prefix.

    Raises:
        NotDicom: the file is empty or has no ``DICM`` prefix.
        NestingLimit: sequences are nested more deeply than ``limits.max_depth``.
        IncompleteDicom: the file ends before a data set begins.
        InputError: the data set cannot be parsed.
    """
    with _quiet_pydicom() as caught:
        try:
            with path.open("rb") as stream:
                check_bytes(os.fstat(stream.fileno()).st_size, limits=limits)
                part10 = _parse(stream, limits=limits, lenient=lenient)
                part10.caught = caught
                yield part10
        except MedvlError:
            raise
        except RecursionError as error:
            raise _too_deep(limits) from error
        except OSError as error:
            raise InputError(
                f"the file cannot be read: {error.strerror or 'no item where one is due'}."
            ) from error
        except Exception as error:  # a parser met with hostile bytes raises nearly anything
            raise InputError(f"the data set cannot be parsed ({type(error).__name__}).") from error


@contextmanager
def _quiet_pydicom() -> Iterator[list[warnings.WarningMessage]]:
    """Keep pydicom's warnings and log records, which quote values of the header, from going anywhere."""
    log = logging.getLogger("pydicom")
    propagated = log.propagate
    log.propagate = False
    try:
        with warnings.catch_warnings(record=True) as caught, pydicom.config.disable_value_validation():
            warnings.simplefilter("always")
            yield caught
    finally:
        log.propagate = propagated


def _parse(stream: io.BufferedIOBase, *, limits: Limits, lenient: bool) -> Part10:
    size = os.fstat(stream.fileno()).st_size
    if size == 0:
        raise NotDicom("the file is empty (0 bytes).")
    stream.seek(128)
    if stream.read(4) != b"DICM":  # PS3.10 7.1
        stream.seek(0)
        if not lenient:
            raise NotDicom(
                "the file has no DICM prefix after a 128-byte preamble.",
                hint="If it is a bare data set, read it with the option 'lenient'.",
            )
    meta = read_elements(stream, implicit=False, little=True, stop=_past_meta)
    syntax = text(meta, "TransferSyntaxUID")
    notes: list[str] = []
    if syntax == DEFLATED:
        stream = io.BytesIO(inflate(stream, limits=limits))
        size = len(stream.getbuffer())
    head = stream.read(6)
    stream.seek(-len(head), os.SEEK_CUR)
    if len(head) < 6:
        raise IncompleteDicom("the file ends before its data set begins: (0008,0016) SOPClassUID is missing.")
    if not syntax:  # PS3.10 7.1 demands it; exports that lost it are native or show a codestream
        syntax = _guess(head)
        notes.append(f"TransferSyntaxUID missing, taken as {UID(syntax).name}")
    implicit, little = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
    found: dict[str, Any] = {}

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag not in PIXEL_TAGS:
            return False
        found.update(tag=tag, vr=vr, length=length)
        return True

    dataset = read_elements(stream, implicit=implicit, little=little, stop=at_pixels)
    check_depth(dataset, limits=limits)
    part10 = Part10(dataset, stream, size, syntax, little, notes=notes)
    if found:
        part10.pixel_keyword = PIXEL_TAGS[found["tag"]]
        part10.pixel_vr = found["vr"]
        part10.pixel_length = found["length"]
        part10.pixel_start = stream.tell() + (12 if found["vr"] in EXPLICIT_VR_LENGTH_32 else 8)
    return part10


def _past_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _guess(head: bytes) -> str:
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if not explicit:
        return IMPLICIT_LITTLE
    # Groups run from 0x0002 to 0x00FF here; read in the wrong order the first byte is zero.
    return EXPLICIT_BIG if head[0] == 0 and head[1] != 0 else EXPLICIT_LITTLE


def _too_deep(limits: Limits) -> NestingLimit:
    return NestingLimit(
        f"sequences are nested more than {limits.max_depth} deep.",
        hint="Raise Limits.max_depth if you trust the file.",
    )


def check_depth(dataset: Dataset, *, limits: Limits) -> None:
    """Refuse sequences nested beyond ``limits.max_depth``, level by level, without recursion.

    A level takes at least 16 bytes, so values too short to pass the limit are not opened.

    Raises:
        NestingLimit: the limit is passed.
    """
    level = [dataset]
    for depth in range(limits.max_depth + 1):
        least = ITEM_BYTES * (limits.max_depth - depth)
        level = [item for parent in level for item in _items(parent, least)]
        if not level:
            return
    raise _too_deep(limits)


def _items(dataset: Dataset, least: int) -> Iterator[Dataset]:
    for element in list(dataset.values()):
        if isinstance(element, RawDataElement):
            if element.value is None or len(element.value) < least or not _is_sequence(element):
                continue
            element = dataset[element.tag]
        if isinstance(element, DataElement) and element.VR == "SQ":
            yield from element.value


def _is_sequence(element: RawDataElement) -> bool:
    if element.VR not in (None, "UN"):
        return element.VR == "SQ"
    try:
        return dictionary_VR(element.tag) == "SQ"
    except KeyError:
        return False  # a private element of unknown VR stays bytes; nothing opens it


def text(dataset: Dataset, keyword: str) -> str:
    """Return a text element, stripped; "" when it is absent or empty.

    Several values stay joined by backslashes: half an identifier would join two patients.

    Raises:
        BadElement: the value cannot be read.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset.keys():
        return ""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.VR in ("CS", "UI") and element.value:
        if PLAIN_WORD.fullmatch(element.value):
            return element.value.decode("ascii").strip("\0 ")
    return "\\".join(str(value) for value in values(dataset, keyword)).strip("\0 \t\r\n")


def integer(dataset: Dataset, keyword: str, *, default: int | None = None) -> int:
    """Return an integer element.

    Raises:
        IncompleteDicom: the element is absent and there is no default.
        BadElement: the value is not an integer of at least 0.
    """
    found = numbers(dataset, keyword)
    if not found:
        if default is None:
            raise missing(keyword)
        return default
    if not found[0].is_integer() or found[0] < 0:
        raise BadElement(f"{keyword} is {found[0]:g}; it must be an integer of at least 0.")
    return int(found[0])


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return all values of a numeric element; () when it is absent or empty.

    Raises:
        BadElement: a value is not a finite number.
    """
    try:
        result = _raw_numbers(dataset, keyword)
        if result is None:
            result = tuple(float(value) for value in values(dataset, keyword))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadElement(f"{keyword} holds a value that is not a number.") from error
    if not all(math.isfinite(value) for value in result):
        raise BadElement(f"{keyword} is {result[0] if len(result) == 1 else result}; it must be finite.")
    return result


def _raw_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of an element that is still bytes; None where only pydicom can tell.

    The objects that pydicom makes of an element take as long to make as the rest of a header to read.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset.keys():
        return ()
    element = dataset.get_item(tag)
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return None
    if element.VR == "US" and len(element.value) % 2 == 0:
        order = "<" if element.is_little_endian else ">"
        return tuple(map(float, struct.unpack(f"{order}{len(element.value) // 2}H", element.value)))
    if element.VR in ("DS", "IS") and PLAIN_NUMBERS.fullmatch(element.value):
        return tuple(float(part) for part in element.value.rstrip(b"\0").split(b"\\"))
    return None


def values(dataset: Dataset, keyword: str) -> list[Any]:
    """Return the values of any element as a list; [] when it is absent or empty.

    Raises:
        BadElement: the value cannot be read.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset.keys():  # five times as fast as asking pydicom for what is not there
        return []
    try:
        value = dataset[tag].value
    except Exception as error:  # pydicom converts on access, and a converter may raise anything
        raise BadElement(f"{keyword} holds a value that its VR does not allow.") from error
    if value is None or value == "":
        return []
    if isinstance(value, (str, bytes, int, float)) or not hasattr(value, "__iter__"):
        return [value]
    return [part for part in value if part is not None and part != ""]


def missing(keyword: str) -> IncompleteDicom:
    """Return the error that names a missing element."""
    return IncompleteDicom(
        f"the header lacks {keyword}, or is cut off before it.",
        hint="Export the file again; the option 'lenient' reads images without SOP UIDs.",
    )
