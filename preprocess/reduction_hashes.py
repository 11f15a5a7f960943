"""Difference hashes of pictures, slices and volumes, and the pairs of them that are near.

The hash is that of Krawetz' difference hash: the picture is resampled to 8 × 9 and bit (r, c) says whether
pixel (r, c + 1) is brighter than (r, c). It moves by 8 bits with another window and by 63 with another
polarity, so it is taken of stored arrays alone, whose window, polarity and orientation are settled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8, UInt64

__all__ = ["DISTANCE", "Near", "dhash", "near_pairs", "slice_hashes", "volume_hash"]

DISTANCE = 6
"""Bits of 64: "Hash-6" of Wolf et al."""
_ROWS, _OTHERS = 128, 4096
"""Of a block of comparisons: its bits stay in the cache."""


def dhash(pictures: UInt8[np.ndarray, "pictures rows columns"]) -> UInt64[np.ndarray, " pictures"]:
    """Return the 64-bit difference hash of pictures of one size, bit 63 first.

    ``bit(r, c) = [s(r, c + 1) > s(r, c)]`` with s the picture resampled to 8 rows and 9 columns by the
    Lanczos kernel of three lobes, rounded to 8 bits after the columns and after the rows as Pillow does.

    Examples:
        >>> ramp = np.tile(np.arange(0, 180, 2, dtype=np.uint8), (80, 1))
        >>> int(dhash(ramp[None])[0]) == 2**64 - 1, int(dhash(ramp[None, :, ::-1])[0])
        (True, 0)
    """
    rows, columns = pictures.shape[1:]
    small = _to_bytes(pictures.astype(np.float32) @ _lanczos(columns, 9).T)
    return _brighter(_to_bytes(_lanczos(rows, 8) @ small))


def _brighter(small: Float[np.ndarray, "pictures 8 9"]) -> UInt64[np.ndarray, " pictures"]:
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def volume_hash(
    volume: Shaped[np.ndarray, "x y z"], *, low: float = -1000.0, high: float = 1000.0
) -> UInt64[np.ndarray, " 8"]:
    """Return the 512-bit difference hash of a volume: eight 64-bit words, one for each eighth along z.

    Bit (j, i) of word k is ``[m(i + 1, j, k) > m(i, j, k)]``, m the windowed volume resampled to 9 × 8 × 8
    as :func:`dhash` resamples.

    Args:
        volume: in canonical orientation.
        low: lower end of the window, in the unit of the volume.
        high: upper end of it.

    Examples:
        >>> ramp = np.tile(np.arange(36, dtype=np.int16)[:, None, None] * 50 - 900, (1, 16, 16))
        >>> [int(word) == 2**64 - 1 for word in volume_hash(ramp)] == [True] * 8
        True
    """
    means = np.clip((volume.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    for axis, target in enumerate((9, 8, 8)):
        weights = _lanczos(means.shape[axis], target)
        means = np.moveaxis(np.tensordot(weights, means, axes=(1, axis)), 0, axis)
    small = np.moveaxis(_to_bytes(means), 0, 2)  # y, z, x: bits along x
    bits = np.moveaxis(small[:, :, 1:] > small[:, :, :-1], 1, 0).reshape(8, 64)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def _to_bytes(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.clip(np.floor(values + np.float32(0.5)), 0, 255)


@functools.lru_cache(maxsize=64)
def _lanczos(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """Return the weights that resample an axis; a reduction stretches the kernel, so nothing aliases."""
    scale = size / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    first = np.maximum((centres - 3 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + 3 * stretch + 0.5).astype(int), size)
    pixels = np.arange(size)
    x = (pixels + 0.5 - centres) / stretch
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    weights *= (pixels >= first) & (pixels < last)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Near(NamedTuple):
    """Pairs of rows whose hashes are near: ``first[k] < second[k]``."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    distance: Int[np.ndarray, " pairs"]


def near_pairs(
    hashes: UInt64[np.ndarray, " rows"] | UInt64[np.ndarray, "rows words"],
    *,
    distance: int = DISTANCE,
    groups: Shaped[np.ndarray, " rows"] | None = None,
) -> Near:
    """Return all pairs at a Hamming distance of at most ``distance`` in 64, within groups if there are any.

    Hashes of several words may differ by so many bits for each word. All pairs are compared, in blocks: some
    400 million words a second, so no index is needed.

    Examples:
        >>> near = near_pairs(np.array([0, 3, 7], np.uint64), distance=1)
        >>> near.first.tolist(), near.second.tolist(), near.distance.tolist()
        ([1], [2], [1])
    """
    hashes = hashes[:, None] if hashes.ndim == 1 else hashes
    distance *= hashes.shape[1]
    if groups is None:
        found = list(_blocks(hashes, np.arange(len(hashes)), distance))
    else:
        _, group = np.unique(groups, return_inverse=True)
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        ends = np.cumsum(sizes)
        large = np.flatnonzero(sizes > 64)
        found = [
            each for g in large for each in _blocks(hashes, order[ends[g] - sizes[g] : ends[g]], distance)
        ]
        small = order[~np.isin(group[order], large)]
        found += list(_neighbours(hashes, small, group[small], distance))
    found.append(Near(*np.empty((3, 0), np.int64)))
    first, second, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((first, second))
    return Near(first[order], second[order], bits[order])


def _bits(
    a: UInt64[np.ndarray, "*#left words"], b: UInt64[np.ndarray, "*#left words"]
) -> Shaped[np.ndarray, "*left"]:
    """Return how many bits differ, word by word: no word is held for all pairs at once."""
    bits: np.ndarray = np.bitwise_count(a[..., 0] ^ b[..., 0])
    for word in range(1, a.shape[-1]):
        bits = bits.astype(np.uint16) + np.bitwise_count(a[..., word] ^ b[..., word])
    return bits


def _blocks(
    hashes: UInt64[np.ndarray, "rows words"], rows: Int[np.ndarray, " some"], distance: int
) -> Iterator[Near]:
    """Compare every one of ``rows`` (ascending) with every later one."""
    chosen = hashes[rows]
    for a in range(0, len(rows), _ROWS):
        for b in range(a, len(rows), _OTHERS):
            bits = _bits(chosen[a : a + _ROWS, None], chosen[None, b : b + _OTHERS])
            i, j = np.divmod(np.flatnonzero(bits <= distance), bits.shape[1])
            later = i + a < j + b
            i, j = i[later], j[later]
            yield Near(rows[a + i], rows[b + j], bits[i, j].astype(np.int64))


def _neighbours(
    hashes: UInt64[np.ndarray, "rows words"],
    rows: Int[np.ndarray, " some"],
    group: Int[np.ndarray, " some"],
    distance: int,
) -> Iterator[Near]:
    """Compare rows that are sorted by group with the next, the one after, … of their group, all at once."""
    shift = 1
    while shift < len(rows) and (same := group[shift:] == group[:-shift]).any():
        i = np.flatnonzero(same)
        bits = _bits(hashes[rows[i]], hashes[rows[i + shift]])
        i, bits = i[bits <= distance], bits[bits <= distance]
        yield Near(rows[i], rows[i + shift], bits.astype(np.int64))
        shift += 1


def slice_hashes(
    volume: Shaped[np.ndarray, "rows columns slices"], *, low: float, high: float
) -> UInt64[np.ndarray, " slices"]:
    """Return :func:`dhash` of each slice, shown in 8 bits between ``low`` and ``high``; nothing is turned."""
    rows, columns, slices = volume.shape
    narrow = np.empty((rows, 9, slices), np.float32)
    for top in range(0, rows, 16):  # a strip stays in the cache, and a large series needs no copy
        strip = (volume[top : top + 16].astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        narrow[top : top + 16] = _to_bytes(_lanczos(columns, 9) @ _to_bytes(strip))
    small = _to_bytes(_lanczos(rows, 8) @ narrow.reshape(rows, 9 * slices))
    return _brighter(np.ascontiguousarray(np.moveaxis(small.reshape(8, 9, slices), -1, 0)))
