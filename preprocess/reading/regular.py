"""Slices that are not regular, interpolated linearly onto a grid that is; only ever on request."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Shaped
from scipy.ndimage import affine_transform

from medvl.preprocess.reading.limits import Limits, check_voxels

__all__ = ["regularised"]

WHOLE = 1e-3
"""A grid position this near to a slice, in slices, is that slice."""


def regularised(
    volume: Shaped[np.ndarray, "slices rows columns"],
    positions: Float[np.ndarray, "slices 3"],
    orientation: tuple[float, ...],
    *,
    pixel_spacing_mm: tuple[float, float],
    spacing_mm: float,
    fill: float,
    limits: Limits,
) -> tuple[Shaped[np.ndarray, "planes height width"], Float[np.ndarray, "3"]]:
    """Return a volume whose axes are perpendicular and evenly spaced, and the position of its first voxel.

    Each plane is the linear mix of its two neighbouring slices, after each slice is moved, linearly as
    well, to where it lies in the plane. The planes grow until they hold every slice.

    Args:
        volume: the slices, in order.
        positions: of the centre of each slice's first pixel, mm.
        orientation: row and column cosines.
        pixel_spacing_mm: between rows, and between columns.
        spacing_mm: between the planes of the result.
        fill: the value where no slice is.
        limits: what the volume may cost.

    Raises:
        PixelLimit: the grid has more voxels than ``limits.max_voxels``.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    down = (positions @ column) / pixel_spacing_mm[0]
    across = (positions @ row) / pixel_spacing_mm[1]
    depths = (positions - positions[0]) @ normal
    top, left = down.min(), across.min()
    height = volume.shape[1] + math.ceil(down.max() - top - WHOLE)
    width = volume.shape[2] + math.ceil(across.max() - left - WHOLE)

    def placed(index: int) -> Shaped[np.ndarray, "height width"]:
        offset = (top - down[index], left - across[index])
        if volume.shape[1:] == (height, width) and max(map(abs, offset)) < WHOLE:
            return volume[index].astype(np.float32)
        plane = volume[index].astype(np.float32)
        return affine_transform(
            plane, [1.0, 1.0], offset, (height, width), order=1, mode="constant", cval=fill
        )

    count = math.floor(depths[-1] / spacing_mm + WHOLE) + 1
    check_voxels(count, height, width, limits=limits)
    result = np.empty((count, height, width), volume.dtype)
    held: dict[int, Shaped[np.ndarray, "height width"]] = {}
    for plane in range(count):
        depth = min(plane * spacing_mm, depths[-1])
        below = min(int(np.searchsorted(depths, depth, "right")) - 1, len(depths) - 2)
        share = float((depth - depths[below]) / (depths[below + 1] - depths[below]))
        held = {i: held[i] if i in held else placed(i) for i in (below, below + 1)}
        mixed = held[below] * np.float32(1 - share) + held[below + 1] * np.float32(share)
        result[plane] = np.rint(mixed) if volume.dtype.kind == "i" else mixed
    first = positions[0] + row * (left - across[0]) * pixel_spacing_mm[1]
    return result, first + column * (top - down[0]) * pixel_spacing_mm[0]
