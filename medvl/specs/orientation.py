"""Which way the axes of a volume point: turned until they run to the right, the front and the top."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from medvl.errors import BadAffine
from medvl.images import Image

__all__ = ["canonical", "nearest_axes"]


def nearest_axes(affine: Float[np.ndarray, "4 4"]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the axis of the array that runs nearest to right, front and top, and the sign of each.

    Of the six orders the one with the largest sum of cosines is chosen; the cosines are those of the
    rotation nearest to the affine, so that a sheared volume is judged fairly.

    Raises:
        BadAffine: the affine is singular or not finite.

    Examples:
        >>> nearest_axes(np.array([[0, 0, -2.0, 0], [3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
        ((2, 0, 1), (-1, 1, 1))
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and edges.min() > 0):
        raise BadAffine("the affine is singular or not finite, so no axis can be called right or left.")
    left, _, right = np.linalg.svd(affine[:3, :3] / edges)
    cosines = left @ right
    orders = itertools.permutations(range(3))
    order = max(orders, key=lambda axes: sum(abs(cosines[row, axis]) for row, axis in enumerate(axes)))
    signs = [1 if cosines[row, axis] >= 0 else -1 for row, axis in enumerate(order)]
    return (order[0], order[1], order[2]), (signs[0], signs[1], signs[2])


def canonical(image: Image) -> Image:
    """Return the volume with its axes to the right, the front and the top, as nearly as flips can.

    Only flips and permutations: a view of the same voxels, nothing is interpolated.

    Raises:
        BadAffine: the volume does not say how it lies.

    Examples:
        >>> from medvl.images import Unit
        >>> las = Image(np.zeros((1, 2, 3, 4)), Unit.HU, affine_ras=np.diag([-1.0, 1.0, 1.0, 1.0]),
        ...             spacing_mm=(1.0, 1.0, 1.0))
        >>> canonical(las).affine_ras[0].tolist()
        [1.0, 0.0, 0.0, -1.0]
    """
    if image.affine_ras is None:
        raise BadAffine("the volume does not say how it lies, so no axis can be called right or left.")
    order, signs = nearest_axes(image.affine_ras)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        turn[axis, row] = sign
        turn[axis, 3] = 0 if sign > 0 else image.array.shape[1 + axis] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    array = image.array.transpose(0, *(1 + axis for axis in order))[:, *flips]
    affine = image.affine_ras @ turn
    spacing = tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return replace(image, array=array, affine_ras=affine, spacing_mm=spacing)
