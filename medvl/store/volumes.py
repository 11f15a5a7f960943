"""Volumes in chunks, each compressed and checked by itself: a patch is read without the rest.

Layout, little-endian: ``medvlvol``, version, type, shape, shape of a chunk; of each chunk its size and
CRC-32; CRC-32 of all that; then the chunks, the last axis fastest, those at the far ends cut to the volume.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import blosc2
import numpy as np
from jaxtyping import Int64, Shaped

from medvl.errors import StoreError, UsageError
from medvl.store.schema import AGAIN

__all__ = ["CHUNK", "VOLUME", "Fetch", "pack_volume", "read_patch", "unpack_volume"]

VOLUME = "vol.b2"
Fetch: TypeAlias = Callable[[int, int], bytes]
"""From first byte and number of bytes to these bytes of a payload, or fewer where it ends."""
Place: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

CHUNK = (32, 32, 32)
"""Voxels of a chunk: no larger on disk than the volume in one piece, and a patch of 96³ takes least time."""
_START = struct.Struct("<8sBB6I")
_MAGIC, _VERSION = b"medvlvol", 1
_KINDS: dict[int, np.dtype] = {1: np.dtype(np.int16), 2: np.dtype(np.uint8)}
_MOST_BYTES, _MOST_CHUNK_BYTES = 2**31, 2**24
_AHEAD = 2**13
"""Bytes read at first: enough for the table of a thousand chunks."""


def pack_volume(volume: Shaped[np.ndarray, "x y z"], *, chunk: Sequence[int] = CHUNK) -> bytes:
    """Return a volume as chunks of blosc2 (zstd, bit shuffle); the bytes depend on the values alone.

    Args:
        volume: int16 or uint8, in any order in memory.
        chunk: voxels of a chunk along each axis.

    Raises:
        StoreError: another type, or an axis without voxels.

    Examples:
        >>> unpack_volume(pack_volume(np.arange(6, dtype=np.int16).reshape(1, 2, 3))).tolist()
        [[[0, 1, 2], [3, 4, 5]]]
    """
    kind = next((code for code, dtype in _KINDS.items() if dtype == volume.dtype), None)
    if kind is None or not volume.size:
        raise StoreError(
            f"a stored volume is int16 or uint8 with at least 1 voxel, got {volume.dtype} {volume.shape}."
        )
    pieces = [
        blosc2.compress2(
            np.ascontiguousarray(volume[tuple(map(slice, first, last))]),
            codec=blosc2.Codec.ZSTD,
            clevel=3,
            typesize=volume.itemsize,
            filters=[blosc2.Filter.BITSHUFFLE],
            blocksize=volume.itemsize * math.prod(chunk),
            nthreads=1,
        )
        for first, last in _places(volume.shape, chunk)
    ]
    start = _START.pack(_MAGIC, _VERSION, kind, *volume.shape, *chunk)
    table = np.array([(len(piece), zlib.crc32(piece)) for piece in pieces], "<u4").tobytes()
    return b"".join((start, table, zlib.crc32(start + table).to_bytes(4, "little"), *pieces))


def unpack_volume(
    payload: bytes, *, shape: tuple[int, ...] | None = None, dtype: str | None = None
) -> Shaped[np.ndarray, "x y z"]:
    """Return the whole volume of :func:`pack_volume`.

    Args:
        payload: of the store.
        shape: what the record promises, or None; anything else is refused before it takes memory.
        dtype: likewise.

    Raises:
        StoreError: the payload is damaged, or is not what the record promises.
    """
    return read_patch(
        lambda first, count: payload[first : first + count], len(payload), shape=shape, dtype=dtype
    )


def read_patch(
    fetch: Fetch,
    size: int,
    *,
    shape: tuple[int, ...] | None,
    dtype: str | None,
    start: Sequence[int] | None = None,
    stop: Sequence[int] | None = None,
) -> Shaped[np.ndarray, "p q r"]:
    """Return a part of a volume; only the chunks that it touches are read, checked and decompressed.

    Args:
        fetch: reads bytes of the payload.
        size: bytes of the payload.
        shape: what the record promises, or None.
        dtype: likewise.
        start: first voxel along each axis; the first of all if None.
        stop: last voxel, exclusive; the end if None.

    Raises:
        UsageError: the patch is empty or leaves the volume.
        StoreError: the payload is damaged, or is not what the record promises.
    """
    head = _Head(fetch, size)
    if (shape is not None and head.shape != tuple(shape)) or (dtype is not None and head.dtype != dtype):
        raise StoreError(
            f"a payload holds {head.dtype} {head.shape}; its record says {dtype} {shape}.", hint=AGAIN
        )
    low = tuple(map(int, start or (0, 0, 0)))
    high = tuple(map(int, stop or head.shape))
    sides = list(zip(low, high, head.shape, strict=False))
    if len(low) != 3 or len(high) != 3 or not all(0 <= a < b <= n for a, b, n in sides):
        raise UsageError(f"a patch from {low} to {high} was asked for; the volume has {head.shape} voxels.")
    patch = np.empty([b - a for a, b in zip(low, high, strict=True)], head.dtype)
    room = np.empty(math.prod(head.chunk), head.dtype)
    along = [range(a // c, -(-b // c)) for a, b, c in zip(low, high, head.chunk, strict=True)]
    for row in itertools.product(along[0], along[1]):
        first = head.number(*row, along[2][0])
        # neighbours along the last axis are neighbours in the file
        run = fetch(int(head.offsets[first]), int(head.offsets[first + len(along[2])] - head.offsets[first]))
        at = 0
        for number, place in enumerate(along[2], first):
            piece = memoryview(run)[at : at + int(head.sizes[number])]
            at += len(piece)
            index = (*row, place)
            origin = [i * c for i, c in zip(index, head.chunk, strict=True)]
            extent = [min(c, n - o) for c, n, o in zip(head.chunk, head.shape, origin, strict=True)]
            values = _decompressed(piece, head, number, room[: math.prod(extent)]).reshape(extent)
            near = [max(a, o) for a, o in zip(low, origin, strict=True)]
            far = [min(b, o + e) for b, o, e in zip(high, origin, extent, strict=True)]
            inside = tuple(slice(n - o, f - o) for n, f, o in zip(near, far, origin, strict=True))
            patch[tuple(slice(n - a, f - a) for n, f, a in zip(near, far, low, strict=True))] = values[inside]
    return patch


def _places(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Place]:
    """Yield first and last voxel (exclusive) of each chunk, in the order of the file."""
    for first in itertools.product(*(range(0, n, c) for n, c in zip(shape, chunk, strict=True))):
        yield first, tuple(min(a + c, n) for a, c, n in zip(first, chunk, shape, strict=True))


class _Head:
    """Shape, type and table of a payload, checked against its size before any memory is taken."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        start = fetch(0, min(size, _AHEAD))
        if len(start) < _START.size or not start.startswith(_MAGIC):
            raise _damaged(size, "it does not begin as a volume")
        _, version, kind, *sides = _START.unpack_from(start)
        if version != _VERSION or kind not in _KINDS:
            raise StoreError(
                f"a volume has version {version} and type {kind}; this medvl reads version {_VERSION} with "
                f"types {', '.join(map(str, _KINDS))}.",
                hint="Update medvl.",
            )
        self.dtype = _KINDS[kind]
        self.shape, self.chunk = (sides[0], sides[1], sides[2]), (sides[3], sides[4], sides[5])
        if min(sides) < 1 or math.prod(self.shape) * self.dtype.itemsize > _MOST_BYTES:
            raise _damaged(size, f"it announces {self.shape} voxels")
        if math.prod(self.chunk) * self.dtype.itemsize > _MOST_CHUNK_BYTES:
            raise _damaged(size, f"it announces chunks of {self.chunk} voxels")
        self.grid = tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        count = math.prod(self.grid)
        end = _START.size + 8 * count
        if end + 4 > size:
            raise _damaged(size, f"it announces {count} chunks")
        if len(start) < end + 4:
            start += fetch(len(start), end + 4 - len(start))
        if zlib.crc32(start[:end]) != int.from_bytes(start[end : end + 4], "little"):
            raise _damaged(size, "the checksum of its table differs")
        table = np.frombuffer(start, "<u4", 2 * count, _START.size).reshape(count, 2)
        self.sizes: Int64[np.ndarray, " chunks"] = table[:, 0].astype(np.int64)
        self.sums = table[:, 1]
        self.offsets: Int64[np.ndarray, " ends"] = np.zeros(count + 1, np.int64)
        np.cumsum(self.sizes, out=self.offsets[1:])
        self.offsets += end + 4
        if self.offsets[-1] != size:
            raise _damaged(size, f"its chunks end at byte {self.offsets[-1]}")

    def number(self, x: int, y: int, z: int) -> int:
        return (x * self.grid[1] + y) * self.grid[2] + z


def _decompressed(
    piece: memoryview, head: _Head, number: int, room: Shaped[np.ndarray, " voxels"]
) -> Shaped[np.ndarray, " voxels"]:
    if len(piece) != head.sizes[number] or zlib.crc32(piece) != head.sums[number]:
        raise StoreError(f"chunk {number} of a volume is damaged: its checksum differs.", hint=AGAIN)
    try:
        announced = blosc2.get_cbuffer_sizes(piece)
        if announced[:2] != (room.nbytes, len(piece)):
            raise ValueError
        blosc2.decompress2(piece, dst=room, nthreads=1)
    except (RuntimeError, ValueError, TypeError) as error:
        raise StoreError(
            f"chunk {number} of a volume does not hold {room.nbytes} compressed bytes.", hint=AGAIN
        ) from error
    return room


def _damaged(size: int, why: str) -> StoreError:
    return StoreError(f"a payload of {size} bytes is no volume: {why}.", hint=AGAIN)
