"""Where the body lies in a scan: the box that is cut out before a volume is resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

__all__ = ["body_box"]

COARSE_MM = 4.0
"""Distance of the voxels that are looked at."""
BODY_HU = -300
"""Fat and skin lie above, air, lungs, clothes and the foam of a table below."""
THIN = 2
"""Looked-at voxels that anything must have along both axes of an axial plane to be more than a shell."""
SMALL = 0.05
"""What has this share of the largest piece is part of the body: legs, arms, a chest wall beside the lungs."""
NEAR = 2
"""Looked-at voxels between the body and the air that belongs to it, at most."""


def body_box(
    hu: Shaped[np.ndarray, "x y z"], spacing_mm: Sequence[float], *, margin_mm: float
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return first and last voxel (exclusive) along each axis of the box around the body, with a margin.

    Every voxel of a 4 mm grid above −300 HU counts. What is thinner than two of them in an axial plane is
    taken away: the shells of the table top, blankets, cables. Of the connected pieces that are left, the
    largest and those of a twentieth of its size are the body. Air that what counts encloses in an axial plane
    belongs to it where the body is near: so lungs are kept whole, however thin the wall of the chest. The
    thick parts of a table, a head rest or a cushion may stay. A scan in which no body is found stays whole.

    Args:
        hu: canonical axes; the third is that of the table.
        spacing_mm: of the three axes.
        margin_mm: added on each side, within the scan.

    Examples:
        >>> scan = np.full((80, 60, 20), -1000, np.int16)
        >>> scan[20:60, 15:45] = 40
        >>> body_box(scan, (4.0, 4.0, 4.0), margin_mm=8)
        ((18, 62), (13, 47), (0, 20))
    """
    from scipy import ndimage

    steps = [max(1, round(COARSE_MM / edge)) for edge in spacing_mm]
    coarse = hu[tuple(slice(step // 2, None, step) for step in steps)]
    solid: Bool[np.ndarray, "x y z"] = coarse > BODY_HU
    square = np.ones((THIN, THIN, 1), bool)
    # at the rim the field of view goes on, so erosion takes nothing from there
    thick = ndimage.binary_dilation(ndimage.binary_erosion(solid, square, border_value=1), square) & solid
    pieces, count = ndimage.label(thick)
    if not count:
        return (0, hu.shape[0]), (0, hu.shape[1]), (0, hu.shape[2])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    body = (sizes >= SMALL * sizes.max())[pieces] & thick
    plane = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])
    air, _ = ndimage.label(ndimage.binary_fill_holes(solid, plane) & ~solid)
    near = np.unique(air[ndimage.binary_dilation(body, plane, iterations=NEAR)])
    body |= np.isin(air, near[near > 0])
    box = []
    for axis, (size, step, edge) in enumerate(zip(hu.shape, steps, spacing_mm, strict=True)):
        found = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        more = round(margin_mm / edge)
        # between a voxel that is looked at and the next one lie step − 1 that were not
        first, last = found[0] * step + step // 2 - (step - 1), found[-1] * step + step // 2 + step
        box.append((max(0, int(first) - more), min(size, int(last) + more)))
    return box[0], box[1], box[2]
