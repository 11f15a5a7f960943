"""Grounding against boxes: the pointing game, contrast to noise, overlap; each beside its chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from medvl.errors import UsageError
from medvl.records import Box

__all__ = ["THRESHOLDS", "box_mask", "cells_in_boxes", "contrast_to_noise", "mean_iou", "pointing"]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the mean IoU; frozen, never chosen on the data that they score."""


def cells_in_boxes(
    boxes: Sequence[Box], *, grid: Sequence[int], size_px: Sequence[int]
) -> Bool[np.ndarray, "rows columns"]:
    """Say which cells of a region grid share area with a box.

    Args:
        boxes: in pixels of the tensor.
        grid: rows and columns of the region grid, which tiles the tensor.
        size_px: height and width of the tensor.
    """
    top = np.arange(grid[0]) * size_px[0] / grid[0]
    left = np.arange(grid[1]) * size_px[1] / grid[1]
    touched = np.zeros((grid[0], grid[1]), bool)
    for box in boxes:
        rows = (top < box.y1) & (top + size_px[0] / grid[0] > box.y0)
        columns = (left < box.x1) & (left + size_px[1] / grid[1] > box.x0)
        touched |= rows[:, None] & columns[None, :]
    return touched


def box_mask(boxes: Sequence[Box], *, shape: Sequence[int]) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of the stored film whose centre lies in a box."""
    y, x = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    mask = np.zeros((shape[0], shape[1]), bool)
    for box in boxes:
        mask |= ((y >= box.y0) & (y < box.y1))[:, None] & ((x >= box.x0) & (x < box.x1))[None, :]
    return mask


def pointing(
    cells: Float[np.ndarray, "rows columns"], touched: Bool[np.ndarray, "rows columns"]
) -> tuple[float, float]:
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
    heat: Float[np.ndarray, "height width"], inside: Bool[np.ndarray, "height width"]
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
    heat: Float[np.ndarray, "height width"],
    inside: Bool[np.ndarray, "height width"],
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
