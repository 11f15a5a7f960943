"""A picture reduced to the exact means of equal areas, in one pass over its pixels."""

from __future__ import annotations

import functools
import itertools
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["area_mean"]

ROWS, COLUMNS = 4, 16
"""Result rows and columns made by one product: long enough for the processor, short enough to be sparse."""
GROUP, BLOCKS = 4, 32
"""Blocks of rows converted to float32 at once, and blocks that wait in the cache for their columns."""

Band: TypeAlias = tuple[tuple[int, int, int, Float[np.ndarray, "some near"]], ...]


def area_mean(
    array: Shaped[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    r"""Return the mean of the picture over each of ``size`` equal rectangles that tile it.

    .. math:: y = A_{rows} \, x \, A_{columns}^T

    where row :math:`i` of :math:`A` holds the share that each pixel has in interval :math:`i` of the
    axis. Both factors are narrow bands, so the products are made in blocks along the band while the
    block is in the cache: every pixel is read once, whatever its type.

    Args:
        array: the picture, any real type; NaN counts as 0.
        size: rows and columns of the result, each at most those of the picture.

    Examples:
        >>> area_mean(np.array([[0, 3, 9]], np.int16), (1, 2)).tolist()
        [[1.0, 7.0]]
    """
    if array.shape == size:
        return _plain(array.astype(np.float32))
    columns = array.shape[1]
    down = _band(array.shape[0], size[0], ROWS)
    across = _turned(columns, size[1], COLUMNS)
    tallest = max(high - low for _, low, high, _ in down)
    strip = np.empty((tallest * GROUP, columns), np.float32)
    half = np.empty((ROWS * BLOCKS, columns), np.float32)
    result = np.empty(size, np.float32)
    for start in range(0, len(down), GROUP):
        blocks = down[start : start + GROUP]
        top, base, end = ROWS * (start - start % BLOCKS), blocks[0][1], blocks[-1][2]
        strip[: end - base] = array[base:end]
        if array.dtype.kind == "f":
            _plain(strip[: end - base])
        for first, low, high, shares in blocks:
            np.dot(shares, strip[low - base : high - base], out=half[first - top :][: len(shares)])
        if (start + GROUP) % BLOCKS and start + GROUP < len(down):
            continue
        rows = result[top : top + ROWS * BLOCKS]
        for first, low, high, shares in across:
            np.matmul(half[: len(rows), low:high], shares, out=rows[:, first : first + shares.shape[1]])
    return result


def _plain(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    return np.nan_to_num(values, copy=False) if not np.isfinite(values).all() else values


@functools.lru_cache(maxsize=256)
def _band(pixels: int, intervals: int, block: int) -> Band:
    """Return, for each block of intervals, the first of them, the pixels it touches and their shares."""
    ends = np.arange(intervals + 1) * pixels / intervals
    blocks = []
    for first, last in itertools.pairwise([*range(0, intervals, block), intervals]):
        low, high = int(ends[first]), min(pixels, int(np.ceil(ends[last])))
        pixel = np.arange(low, high)
        begin, end = ends[first:last, None], ends[first + 1 : last + 1, None]
        covered = np.minimum(end, pixel + 1) - np.maximum(begin, pixel)
        shares = np.clip(covered, 0, None) / (pixels / intervals)
        blocks.append((first, low, high, shares.astype(np.float32)))
    return tuple(blocks)


@functools.lru_cache(maxsize=256)
def _turned(pixels: int, intervals: int, block: int) -> Band:
    """Return the band with one column an interval, as the product over columns reads it: a third faster."""
    band = _band(pixels, intervals, block)
    return tuple((first, low, high, np.ascontiguousarray(shares.T)) for first, low, high, shares in band)
