"""DICOM files that are wrong on purpose: changed elements, bare meta groups, nested sequences."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file

CT = Path(get_testdata_file("CT_small.dcm", download=False))
MR = Path(get_testdata_file("MR_small.dcm", download=False))
J2K = Path(get_testdata_file("MR_small_jp2klossless.dcm", download=False))
JPEG_12_BIT = Path(get_testdata_file("JPGExtended.dcm", download=False))
DEFLATED = b"1.2.840.10008.1.2.1.99"
EXPLICIT = b"1.2.840.10008.1.2.1"


def changed(path: Path, *, source: Path = MR, **elements: object) -> Path:
    """Write ``source`` as a radiograph with other values; None deletes an element."""
    dataset = pydicom.dcmread(source)
    dataset.Modality = "DX"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the values are meant to be wrong
        for keyword, value in elements.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path)
    return path


def meta(syntax: bytes) -> bytes:
    """Return preamble, prefix and the smallest file meta group with one transfer syntax."""
    syntax += b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(element))
    return b"\0" * 128 + b"DICM" + length + element


def nested(depth: int, *, defined: bool, implicit: bool = False) -> bytes:
    """Return ``depth`` sequences inside one another as explicit or implicit VR little endian."""
    head = struct.pack("<HH", 0x0008, 0x1140)
    if not defined:
        opening = (
            head
            + (b"" if implicit else b"SQ\0\0")
            + struct.pack("<LHHL", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        )
        closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opening * depth + closing * depth
    lengths = [0]
    for _ in range(depth):
        lengths.append(lengths[-1] + (16 if implicit else 20))
    parts = []
    for inner in reversed(lengths[:-1]):
        parts.append(head + (b"" if implicit else b"SQ\0\0") + struct.pack("<L", inner + 8))
        parts.append(struct.pack("<HHL", 0xFFFE, 0xE000, inner))
    return b"".join(parts)
