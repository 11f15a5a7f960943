"""Pictures and volumes resampled axis by axis: means of equal intervals, linear where they are enlarged."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int16, Shaped

__all__ = ["Axis", "area_mean", "resampled"]

ROWS, COLUMNS = 4, 16
"""Result rows and columns made by one product: long enough for the processor, short enough to be sparse."""
GROUP, BLOCKS = 4, 32
"""Blocks of rows converted to float32 at once, and blocks that wait in the cache for their columns."""
EDGE = 1e-6
"""Pixels within which two places are one."""

Band: TypeAlias = tuple[tuple[int, int, int, Float[np.ndarray, "some near"]], ...]


@dataclass(frozen=True)
class Axis:
    """Equal intervals along one axis of an array, in pixels from the edge of its first pixel.

    Attributes:
        pixels: of the array.
        count: of the intervals.
        start: where the first interval begins.
        length: of all intervals together.
    """

    pixels: int
    count: int
    start: float
    length: float

    @property
    def same(self) -> bool:
        """Whether each interval is one pixel."""
        return self.start.is_integer() and self.length == self.count

    @property
    def step(self) -> float:
        """Pixels in an interval."""
        return self.length / self.count

    def inside(self) -> tuple[slice, slice, Axis] | None:
        """Return the intervals whose centre is a pixel, the pixels that they touch, and both as an axis.

        None when there are none.
        """
        first = max(0, math.ceil((EDGE - self.start) / self.step - 0.5))
        last = min(self.count, math.floor((self.pixels - EDGE - self.start) / self.step + 0.5))
        if first >= last:
            return None
        start, count = self.start + first * self.step, last - first
        length = self.length if count == self.count else count * self.step
        reach = max(0.0, (1 - self.step) / 2)  # an enlarged pixel mixes both neighbours of its centre
        low = max(0, math.floor(start - reach))
        high = min(self.pixels, math.ceil(start + length + reach))
        return slice(first, last), slice(low, high), Axis(high - low, count, start - low, length)


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
    down, across = (Axis(pixels, count, 0.0, pixels) for pixels, count in zip(array.shape, size, strict=True))
    return _product(array, down, across)


def resampled(
    volume: Shaped[np.ndarray, "x y z"], axes: Sequence[Axis], *, lowest: int, highest: int
) -> Int16[np.ndarray, "p q r"]:
    """Return the volume over the intervals of three axes, rounded.

    Values are brought into the range first, what is no number to its low end; then each axis is resampled:
    an interval has the mean of its pixels, or the linear mix at its centre if it is shorter than a pixel.
    An interval partly outside has the mean of its part inside, one whose centre is outside ``lowest``. One
    plane of the source at a time is held as float32, whatever the order of its axes in memory, and the
    result has the same order.

    Args:
        volume: any real type.
        axes: of the volume.
        lowest: of the range.
        highest: of the range.

    Examples:
        >>> twice = [Axis(2, 1, 0.0, 2.0)] * 3
        >>> resampled(np.arange(8).reshape(2, 2, 2), twice, lowest=0, highest=7).tolist()
        [[[4]]]
    """
    order = sorted(range(3), key=lambda axis: -abs(volume.strides[axis]))
    result = np.full([axes[axis].count for axis in order], lowest, np.int16)
    back = np.argsort(order)
    found = [axes[axis].inside() for axis in order]
    if any(each is None for each in found):
        return result.transpose(back)
    (planes, slab, along), (rows, top, down), (columns, left, across) = (each for each in found if each)
    source = volume.transpose(order)[slab, top, left]
    low, high = _range(source.dtype, lowest, highest)

    def plane(index: int) -> Float[np.ndarray, "height width"]:
        values = source[index]
        if values.dtype.kind == "f":
            values = np.nan_to_num(values, nan=lowest, posinf=highest, neginf=lowest)
        values = np.clip(values, low, high)
        return values.astype(np.float32) if down.same and across.same else _product(values, down, across)

    held: dict[int, Float[np.ndarray, "height width"]] = {}
    for number, near, far, shares in _band(along, 1):
        held = {index: held[index] if index in held else plane(index) for index in range(near, far)}
        mixed = held[near] * shares[0, 0]
        for index, share in zip(range(near + 1, far), shares[0, 1:], strict=True):
            mixed += held[index] * share
        result[planes][number, rows, columns] = np.rint(mixed, out=mixed)
    return result.transpose(back)


def _range(kind: np.dtype, lowest: int, highest: int) -> tuple[int, int]:
    """Return the part of a range that an integer type can hold."""
    if kind.kind not in "iu":
        return lowest, highest
    ends = np.iinfo(kind)
    return max(lowest, ends.min), min(highest, ends.max)


def _product(
    array: Shaped[np.ndarray, "rows columns"], vertical: Axis, horizontal: Axis
) -> Float[np.ndarray, "height width"]:
    """Return the picture over the intervals of both axes; NaN counts as 0."""
    down, across = _band(vertical, ROWS), _turned(horizontal, COLUMNS)
    size, columns = (vertical.count, horizontal.count), array.shape[1]
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
def _band(axis: Axis, block: int) -> Band:
    """Return, for each block of intervals, the first of them, the pixels it touches and their shares."""
    step = axis.step
    ends = axis.start + np.arange(axis.count + 1) * axis.length / axis.count
    blocks = []
    for first, last in itertools.pairwise([*range(0, axis.count, block), axis.count]):
        begin, end = ends[first:last, None], ends[first + 1 : last + 1, None]
        if step >= 1:
            low, high = int(max(0, ends[first])), min(axis.pixels, int(np.ceil(ends[last])))
            pixel = np.arange(low, high)
            shares = np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, None)
            whole = (begin >= 0) & (end <= axis.pixels)  # else the mean is that of the part inside
            shares /= np.where(whole, step, np.maximum(shares.sum(1, keepdims=True), EDGE))
        else:
            centre = np.clip((begin + end - 1) / 2, 0, axis.pixels - 1)
            low, high = int(centre[0, 0]), min(axis.pixels, int(centre[-1, 0]) + 2)
            shares = np.clip(1 - np.abs(np.arange(low, high) - centre), 0, None)
        blocks.append((first, low, high, shares.astype(np.float32)))
    return tuple(blocks)


@functools.lru_cache(maxsize=256)
def _turned(axis: Axis, block: int) -> Band:
    """Return the band with one column an interval, as the product over columns reads it: a third faster."""
    band = _band(axis, block)
    return tuple((first, low, high, np.ascontiguousarray(shares.T)) for first, low, high, shares in band)
