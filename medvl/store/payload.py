"""How the pixels of one record are coded: a packed array, a volume, or the codestream of its own source."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import blosc2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image as Pillow

from medvl.errors import StoreError
from medvl.store.schema import AGAIN
from medvl.store.volumes import VOLUME, unpack_volume

__all__ = ["CODESTREAMS", "PACKED", "decode", "original_payload", "pack", "pixel_hash", "unpack"]

PACKED = "npy.b2"
CODESTREAMS = {"jpg": "JPEG", "png": "PNG"}
"""Payload and name of a member to the name that Pillow gives the format."""

_BLOCK_BYTES = 2**18
"""Fixed, so that the bytes do not depend on the caches of a machine; larger blocks gain nothing."""
_MOST_BYTES = 2**31
_HEADER_BYTES = 4096

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][a-z]\d+)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]*)\), \} *\n",
    re.DOTALL,
)
"""Format version 1.0 of the NumPy enhancement proposal 1."""

_SOI, _EOI, _SOS = b"\xff\xd8", 0xD9, 0xDA
_JPEG_KEPT = frozenset({0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xDC, 0xDD})
"""Frame (baseline, extended, progressive), Huffman and quantisation tables, scan, lines, restarts: ITU-T T.81
table B.1. All other segments, above all APPn and COM, can name a patient and are not needed for grey."""
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed zero nor a restart nor filling

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"IDAT", b"IEND")
_GREY8 = bytes((8, 0, 0, 0, 0))
"""Bit depth 8, grey, deflate, adaptive filters, not interlaced: the last five bytes of IHDR."""


def pixel_hash(array: Shaped[np.ndarray, "..."]) -> str:
    """Return the hash of a stored array, its shape and values; equal pictures have equal hashes.

    Examples:
        >>> pixel_hash(np.zeros((2, 2), np.uint8)) == pixel_hash(np.zeros((4, 1), np.uint8))
        False
    """
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def pack(array: Shaped[np.ndarray, "..."]) -> bytes:
    """Return an array as a blosc2-compressed ``.npy`` stream (zstd, bit shuffle).

    Examples:
        >>> unpack(pack(np.arange(6, dtype=np.int16).reshape(1, 2, 3))).tolist()
        [[[0, 1, 2], [3, 4, 5]]]
    """
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return blosc2.compress2(
        stream.getbuffer(),
        codec=blosc2.Codec.ZSTD,
        clevel=3,
        typesize=array.dtype.itemsize,
        filters=[blosc2.Filter.BITSHUFFLE],
        blocksize=_BLOCK_BYTES,
        nthreads=1,
    )


def unpack(
    payload: bytes, *, most_bytes: int = _MOST_BYTES, room: UInt8[np.ndarray, " bytes"] | None = None
) -> Shaped[np.ndarray, "..."]:
    """Return the array of :func:`pack`.

    Args:
        payload: the packed array.
        most_bytes: size that the array may have; a payload that announces more is refused unread.
        room: memory that the array becomes a view of, if it is large enough; new memory if None.

    Raises:
        StoreError: the payload is not a compressed array, or is larger than allowed.
    """
    try:
        announced = blosc2.get_cbuffer_sizes(payload)[0] if len(payload) >= 32 else 0
        if not 0 < announced <= most_bytes + _HEADER_BYTES:
            raise ValueError
        # One buffer for the stream, and the array is a view of it: half the time of np.load.
        if room is None or len(room) < announced:
            room = np.empty(announced, np.uint8)
        stream = room[:announced]
        blosc2.decompress2(payload, dst=stream, nthreads=1)
        end = 10 + int(stream[8]) + 256 * int(stream[9])
        start, shape, dtype = _header(stream[: min(end, _HEADER_BYTES)].tobytes())
        return stream[start:].view(dtype).reshape(shape)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise StoreError(f"a payload of {len(payload)} bytes is not a packed array.", hint=AGAIN) from error


@functools.lru_cache(maxsize=256)
def _header(start: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Return where the values begin, their shape and type; most arrays of a store have the same header.

    It is matched as :func:`pack` writes it: NumPy's own reader would evaluate what stands there.
    """
    found = _NPY.fullmatch(start)
    if found is None:
        raise ValueError
    shape = tuple(int(size) for size in found["shape"].split(b",") if size.strip())
    return len(start), shape, np.dtype(found["dtype"].decode())


def decode(
    payload: bytes,
    kind: str,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
    room: UInt8[np.ndarray, " bytes"] | None = None,
) -> Shaped[np.ndarray, "..."]:
    """Return the array of a payload of any kind.

    Args:
        payload: the bytes of the member.
        kind: ``"npy.b2"``, ``"vol.b2"``, ``"jpg"`` or ``"png"``.
        shape: what the record promises, or None; anything else is refused before it takes memory.
        dtype: likewise.
        room: see :func:`unpack`; a codestream and a volume take new memory.

    Raises:
        StoreError: an unknown kind, a damaged payload, or one of another shape or type than promised.
    """
    if kind == PACKED:
        most = _MOST_BYTES
        if shape is not None and dtype is not None:
            most = math.prod(shape) * np.dtype(dtype).itemsize
        array = unpack(payload, most_bytes=most, room=room)
    elif kind == VOLUME:
        array = unpack_volume(payload, shape=shape, dtype=dtype)
    elif kind in CODESTREAMS:
        array = _decode_grey(payload, kind, shape)
    else:
        known = ", ".join((PACKED, VOLUME, *CODESTREAMS))
        raise StoreError(f"a payload is coded as {kind!r}; this version reads {known}.", hint="Update medvl.")
    if (shape is not None and array.shape != shape) or (dtype is not None and array.dtype != dtype):
        raise StoreError(
            f"a payload holds {array.dtype} {array.shape}; its record says {dtype} {shape}.", hint=AGAIN
        )
    return array


def _decode_grey(
    payload: bytes, kind: str, shape: tuple[int, ...] | None
) -> UInt8[np.ndarray, "rows columns"]:
    try:
        with Pillow.open(io.BytesIO(payload), formats=(CODESTREAMS[kind],)) as picture:
            if picture.mode != "L" or (shape is not None and picture.size != shape[::-1]):
                raise ValueError
            return np.array(picture)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise StoreError(
            f"a payload of {len(payload)} bytes is not the 8-bit grey {kind} of its record.", hint=AGAIN
        ) from error


def original_payload(path: Path, array: Shaped[np.ndarray, "..."]) -> tuple[bytes, str] | None:
    """Return the codestream of a source file and its kind, if it may stand for the stored array.

    Only 8-bit grey JPEG (baseline, extended, progressive) and PNG of the array's own shape come into
    question. Everything that the picture does not need is left behind, without a new compression: EXIF,
    comments, thumbnails, text, times, and what follows the end. :func:`medvl.store.write_shard` decodes the
    bytes and keeps them only if they give exactly the array, in less room than the packed one takes.

    Args:
        path: the source.
        array: the stored array.
    """
    if array.ndim != 2 or array.dtype != np.uint8 or path.stat().st_size > array.size + 2**20:
        return None
    data = path.read_bytes()
    height, width = array.shape
    if data.startswith(_SOI):
        stream = _bare_jpeg(data, height=height, width=width)
        return None if stream is None else (stream, "jpg")
    if data.startswith(_PNG_START):
        stream = _bare_png(data, height=height, width=width)
        return None if stream is None else (stream, "png")
    return None


def _bare_jpeg(data: bytes, *, height: int, width: int) -> bytes | None:
    """Return frame, tables and scans of a grey JPEG of this size; None for any other."""
    kept, frames = [_SOI], 0
    for marker, segment in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:  # T.81 B.2.2: length, precision, lines, samples a line, components
            frames += 1
            precision, rows, columns = segment[4], segment[5:7], segment[7:9]
            if (precision, int.from_bytes(rows), int.from_bytes(columns), segment[9]) != (
                8,
                height,
                width,
                1,
            ):
                return None
        if marker == _EOI:
            return b"".join([*kept, b"\xff\xd9"]) if frames == 1 else None
        if marker in _JPEG_KEPT:
            kept.append(segment)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return None
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of each segment, a scan with its coded data; stop at what is no segment."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # T.81 B.1.1.2: any marker may be preceded by fill bytes
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == _EOI:
            end = at + 2
        elif end > len(data) or end < at + 4 or (marker in _JPEG_FRAMES and end < at + 13):
            return
        elif marker == _SOS:
            found = _AFTER_SCAN.search(data, end)
            if found is None:
                return
            end = found.start()
        yield marker, data[at:end]
        at = end
    if data[at : at + 2] == b"\xff\xd9":
        yield _EOI, data[at : at + 2]


def _bare_png(data: bytes, *, height: int, width: int) -> bytes | None:
    """Return header and pixels of a grey PNG of this size; None for any other."""
    kept, pixels, at = [_PNG_START], [], 8
    while at + 12 <= len(data):  # PNG 5.3: length, type, data, CRC
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return None
        if kind == b"IHDR" and body != width.to_bytes(4) + height.to_bytes(4) + _GREY8:
            return None
        if kind == b"tRNS":  # makes pixels transparent: the reader lays them over black
            return None
        if kind == b"IDAT":
            pixels.append(body)
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept) if _only_pixels(b"".join(pixels), height * (width + 1)) else None
        at = end
    return None


def _only_pixels(deflated: bytes, size: int) -> bool:
    """Whether a zlib stream holds exactly ``size`` bytes, and nothing hides behind its end."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(deflated, size + 1)
    except zlib.error:
        return False
    return len(inflated) == size and inflater.eof and not inflater.unused_data
