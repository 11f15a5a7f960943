"""Grounding against boxes: the pointing game, contrast to noise, overlap; each beside its chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from medvl.errors import UsageError
from medvl.records import Box

__all__ = [
    "THRESHOLDS",
    "box_mask",
    "box_sides",
    "cells_in_boxes",
    "contrast_to_noise",
    "mean_iou",
    "pointing",
]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the mean IoU; frozen, never chosen on the data that they score."""


def cells_in_boxes(
    boxes: Sequence[Box], *, grid: Sequence[int], size_px: Sequence[float]
) -> Bool[np.ndarray, " *cells"]:
    """Say which cells of a region grid share area, or volume, with a box.

    Args:
        boxes: in pixels or voxels of the tensor.
        grid: regions along each axis of the tensor, which they tile.
        size_px: of the tensor along these axes.
    """

    def touches(low: float, high: float, axis: int) -> Bool[np.ndarray, " cells"]:
        edge = np.arange(grid[axis]) * size_px[axis] / grid[axis]
        return (edge < high) & (edge + size_px[axis] / grid[axis] > low)

    return _in_boxes(boxes, tuple(grid), touches)


def box_mask(boxes: Sequence[Box], *, shape: Sequence[int]) -> Bool[np.ndarray, " *stored"]:
    """Return the pixels of the stored film, or the voxels of the volume, whose centre lies in a box."""

    def within(low: float, high: float, axis: int) -> Bool[np.ndarray, " places"]:
        centre = np.arange(shape[axis]) + 0.5
        return (centre >= low) & (centre < high)

    return _in_boxes(boxes, tuple(shape), within)


def _in_boxes(
    boxes: Sequence[Box],
    shape: tuple[int, ...],
    along: Callable[[float, float, int], Bool[np.ndarray, " places"]],
) -> Bool[np.ndarray, " *places"]:
    """Return the places that lie in a box along every axis."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        inside = np.ones((), bool)
        for axis, (low, high) in enumerate(box_sides(box, axes=len(shape))):
            inside = inside[..., None] & along(low, high, axis)
        mask |= inside
    return mask


def box_sides(box: Box, *, axes: int) -> tuple[tuple[float, float], ...]:
    """Return where a box begins and ends along each axis of the array: rows first on a film.

    Raises:
        UsageError: a box in a volume without z.

    Examples:
        >>> box_sides(Box("nodule", 1.0, 2.0, 3.0, 4.0), axes=2)
        ((2.0, 4.0), (1.0, 3.0))
    """
    if axes == 2:
        return (box.y0, box.y1), (box.x0, box.x1)
    if box.z0 is None or box.z1 is None:
        raise UsageError(f"the box of '{box.label}' has no z; a box in a volume has six sides.")
    return (box.x0, box.x1), (box.y0, box.y1), (box.z0, box.z1)


def pointing(cells: Float[np.ndarray, " *grid"], touched: Bool[np.ndarray, " *grid"]) -> tuple[float, float]:
    """Return the pointing game's hit and its chance.

    A hit is 1 when the largest cell on the film touches a box of the finding; of equal largest cells each
    is as likely, so a constant map scores exactly its chance, the share of the film's cells that touch.

    Raises:
        UsageError: no cell is on the film.

    Examples:
        >>> pointing(np.array([[0.1, 0.9], [0.9, np.nan]]), np.array([[False, True], [False, True]]))
        (0.5, 0.3333333333333333)
    """
    film = ~np.isnan(cells)
    if not film.any():
        raise UsageError(f"0 of {cells.size} cells are on the film; there is nothing to point at.")
    largest = film & (cells == np.nanmax(cells))
    return float(touched[largest].mean()), float(touched[film].mean())


def contrast_to_noise(
    heat: Float[np.ndarray, " *stored"], inside: Bool[np.ndarray, " *stored"]
) -> float | None:
    r"""Return $(\mu_\text{in} - \mu_\text{out}) / \sqrt{\sigma^2_\text{in} + \sigma^2_\text{out}}$, signed.

    The absolute value, which is often printed, rewards a map that is upside down. None where one side has
    no pixel or neither varies.
    """
    film = ~np.isnan(heat)
    within, without = heat[film & inside], heat[film & ~inside]
    if not len(within) or not len(without):
        return None
    noise = float(np.sqrt(within.var() + without.var()))
    return float((within.mean() - without.mean()) / noise) if noise > 1e-12 else None


def mean_iou(
    heat: Float[np.ndarray, " *stored"],
    inside: Bool[np.ndarray, " *stored"],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """Return the mean over thresholds of the IoU of the min-max normalised map and the boxes.

    Raises:
        UsageError: the map has no pixel on the film.
    """
    film = ~np.isnan(heat)
    if not film.any():
        raise UsageError(f"0 of {heat.size} pixels are on the film; there is no map to compare.")
    low, high = float(heat[film].min()), float(heat[film].max())
    scaled = (heat[film] - low) / max(high - low, 1e-12)
    right = inside[film]
    overlaps = []
    for threshold in thresholds:
        called = scaled >= threshold
        union = int((called | right).sum())
        overlaps.append(int((called & right).sum()) / union if union else 0.0)
    return float(np.mean(overlaps))
