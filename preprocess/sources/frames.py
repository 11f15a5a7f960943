"""Segmentations for other series of their study: one frame of reference, and an extent that covers theirs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from medvl.errors import InputError
from medvl.preprocess.reading.places import LPS_TO_RAS
from medvl.preprocess.reading.series import Series
from medvl.preprocess.sources.items import Item
from medvl.preprocess.structures_masks import Mask
from medvl.preprocess.structures_seg import Grid, Segmentation, read_segmentation

__all__ = ["SharedMasks"]

_BEYOND = 1.5
"""Voxels of the segmented series by which another may reach past its first and last centre: reconstructions
of one scan begin and end within a slice of each other."""


class SharedMasks:
    """The segmentations of a source by study and frame of reference.

    What was looked at is the series that a segmentation names, where it is at hand: it may leave out frames
    in which nothing is. Else it is the stack of its frames.

    Args:
        items: the volumes of the source.
        segmentations: masks with what their headers say.
    """

    def __init__(self, items: Sequence[Item], segmentations: Sequence[tuple[Mask, Segmentation]]) -> None:
        self._series = {item.series.slices[0].series_uid: item.series for item in items if item.series}
        self._known: dict[Mask, Grid | None] = {}
        self._by_frame: dict[tuple[str, str], list[tuple[Mask, Segmentation]]] = defaultdict(list)
        for mask, said in segmentations:
            if said.study and said.frame_of_reference:
                self._by_frame[said.study, said.frame_of_reference].append((mask, said))

    def find(self, series: Series) -> Mask | None:
        """Return the first mask of the frame of reference whose extent covers a series; it says so itself."""
        first = series.slices[0]
        for mask, said in self._by_frame.get((first.study_uid, first.frame_of_reference), ()):
            looked_at, wanted = self._grid(mask, said), _grid_of(series)
            if looked_at is not None and wanted is not None and _covers(looked_at, wanted):
                return replace(mask, shared=True)
        return None

    def _grid(self, mask: Mask, said: Segmentation) -> Grid | None:
        if mask not in self._known:
            named = next((self._series[uid] for uid in said.series if uid in self._series), None)
            try:
                self._known[mask] = _grid_of(named) if named else read_segmentation(mask.path)
            except InputError:
                self._known[mask] = None
        return self._known[mask]


def _grid_of(series: Series) -> Grid | None:
    """Return where the voxels of a series lie, were its slices evenly spaced; None without a place."""
    first, last = series.slices[0], series.slices[-1]
    if first.position is None or last.position is None:
        return None
    if first.orientation is None or first.spacing_mm is None:
        return None
    across, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    count = len(series.slices)
    affine = np.eye(4)
    stack = np.subtract(last.position, first.position) / (count - 1) if count > 1 else np.cross(across, down)
    affine[:3, :3] = np.stack([stack, down * first.spacing_mm[0], across * first.spacing_mm[1]], axis=1)
    affine[:3, 3] = first.position
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 0
    return Grid((count, first.rows, first.columns), (), LPS_TO_RAS @ affine) if usable else None


def _covers(grid: Grid, other: Grid) -> bool:
    corners: Float[np.ndarray, "4 8"] = np.array(
        [(*corner, 1.0) for corner in itertools.product(*((0, size - 1) for size in other.shape))]
    ).T
    places = (np.linalg.inv(grid.affine_ras) @ other.affine_ras @ corners)[:3].T
    return bool((places >= -_BEYOND).all() and (places <= np.array(grid.shape) - 1 + _BEYOND).all())
