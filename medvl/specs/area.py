"""A picture reduced to the exact means of equal areas, in one pass over its pixels."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["area_mean"]

ROWS, COLUMNS = 4, 16
"""Result rows and columns made by one product: long enough for the processor, short enough to be sparse."""
BLOCKS = 16
"""Blocks of rows whose half-reduced values stay in the cache until their columns are reduced."""


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
    across = _band(columns, size[1], COLUMNS)
    strip = np.empty((max(high - low for _, low, high, _ in down), columns), np.float32)
    tall = np.empty((ROWS * BLOCKS, columns), np.float32)
    result = np.empty(size, np.float32)
    for start in range(0, len(down), BLOCKS):
        top = ROWS * start
        for first, low, high, shares in down[start : start + BLOCKS]:
            block = strip[: high - low]
            block[...] = array[low:high]
            if array.dtype.kind == "f":
                _plain(block)
            np.matmul(shares, block, out=tall[first - top :][: len(shares)])
        rows = result[top : top + ROWS * BLOCKS]
        for first, low, high, shares in across:
            np.matmul(tall[: len(rows), low:high], shares.T, out=rows[:, first : first + len(shares)])
    return result


def _plain(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    return np.nan_to_num(values, copy=False) if not np.isfinite(values).all() else values


@functools.lru_cache(maxsize=256)
def _band(
    pixels: int, intervals: int, block: int
) -> tuple[tuple[int, int, int, Float[np.ndarray, "some near"]], ...]:
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
