"""What encapsulated pixel data say of themselves, read before a codec takes memory for them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from medvl.errors import TruncatedPixels

__all__ = ["Codestream", "fragments"]

ITEM, END = 0xE000FFFE, 0xE0DDFFFE
JPEG_START = b"\xff\xd8"
J2K_START = b"\xff\x4f\xff\x51"
JP2_HEADER_BYTES = 4096
"""A JP2 file wrapped into a fragment has its boxes before the codestream."""
JPEG_FRAMES = {0xC0: "50", 0xC1: "51", 0xC2: "51", 0xC3: "70", 0xF7: "81"}  # ISO/IEC 10918-1 B.1.1.3
PARTS = "1.2.840.10008.1.2.4."


def fragments(payload: bytes) -> tuple[list[int], int]:
    """Return where each fragment starts, the offset table left out, and where the value ends (PS3.5 A.4).

    Raises:
        TruncatedPixels: the last fragment is shorter than its header says.
    """
    starts: list[int] = []
    position = 0
    while position + 8 <= len(payload):
        tag, length = struct.unpack_from("<LL", payload, position)
        if tag == END:
            position += 8
            break
        if tag != ITEM:
            break
        start = position + 8
        if start + length > len(payload):
            raise TruncatedPixels(
                f"a fragment of the pixel data holds {len(payload) - start:,} bytes; its header promises "
                f"{length:,}.",
                hint="Export the file again; nothing is filled in.",
            )
        starts.append(start)
        position = start + length
    return starts[1:], position


@dataclass(frozen=True)
class Codestream:
    """The frame header of a JPEG, JPEG-LS or JPEG 2000 codestream."""

    transfer_syntax: str
    rows: int
    columns: int
    bits: int

    @classmethod
    def read(cls, payload: bytes, start: int) -> Codestream | None:
        """Read the frame header at ``start``; None when no codestream begins there."""
        if payload.startswith(JPEG_START, start):
            return cls._jpeg(payload, start + 2)
        if payload.startswith(J2K_START, start):
            return cls._j2k(payload, start)
        if payload.startswith(b"\0\0\0\x0cjP", start):
            place = payload.find(J2K_START, start, start + JP2_HEADER_BYTES)
            return cls._j2k(payload, place) if place >= 0 else None
        return None

    @classmethod
    def _j2k(cls, payload: bytes, start: int) -> Codestream | None:
        if start + 43 > len(payload):
            return None
        right, bottom, left, top = struct.unpack_from(">4L", payload, start + 8)  # ISO/IEC 15444-1 A.5.1
        bits = (payload[start + 42] & 0x7F) + 1
        return cls(f"{PARTS}91", max(0, bottom - top), max(0, right - left), bits)

    @classmethod
    def _jpeg(cls, payload: bytes, position: int) -> Codestream | None:
        while position + 9 <= len(payload) and payload[position] == 0xFF:
            marker, length = struct.unpack_from(">BH", payload, position + 1)
            if marker in JPEG_FRAMES:
                bits, rows, columns = struct.unpack_from(">BHH", payload, position + 4)
                return cls(f"{PARTS}{JPEG_FRAMES[marker]}", rows, columns, bits)
            position += 1 if marker == 0xFF else 2 + length
        return None
