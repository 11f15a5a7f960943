"""A volume larger than a model's tensor: embedded by windows, its regions on one grid over all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor

from medvl.features import ImageFeatures
from medvl.records import Box
from medvl.specs import InputSpec, VolumeInput

__all__ = ["Lattice", "Whole", "part_cells", "whole_volume"]

_COVERED = 1e-6
"""Share of a cell that a window must show, beyond rounding."""

Encode = Callable[[Tensor, Tensor], ImageFeatures]


@dataclass(frozen=True)
class Lattice:
    """How stored voxels lie under a grid of regions: place on the grid's canvas = stored · scale + offset.

    Places count from the edge of the first voxel; the grid tiles a canvas of ``size_px``.

    Examples:
        >>> Lattice.of(VolumeInput(size_px=(4, 4, 4)), (8, 4, 2)).offset
        (-2.0, 0.0, 1.0)
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    size_px: tuple[float, ...]

    @classmethod
    def of(cls, input: InputSpec | VolumeInput, shape: Sequence[int]) -> Lattice:
        """Return the lattice of one tensor over a stored array of ``shape``."""
        size = tuple(float(side) for side in input.size_px)
        if isinstance(input, InputSpec):
            scale, top, left = input.placement(tuple(shape))
            return cls((scale, scale), (float(top), float(left)), size)
        axes, offset = input.frame(tuple(shape))
        return cls(tuple(axes.tolist()), tuple(offset.astype(float).tolist()), size)

    def place(self, box: Box) -> Box:
        """Move a box of a volume from stored voxels onto the canvas."""
        low = [box.x0, box.y0, box.z0 or 0.0]
        high = [box.x1, box.y1, box.z1 or 0.0]
        low, high = (
            [v * s + o for v, s, o in zip(ends, self.scale, self.offset, strict=True)] for ends in (low, high)
        )
        return Box(box.label, low[0], low[1], high[0], high[1], low[2], high[2])

    def cell_of(self, axis: int, *, length: int, cells: int) -> Float[np.ndarray, " voxels"]:
        """Return where the centres of stored voxels lie along one axis, in cells from the first edge."""
        places = (np.arange(length) + 0.5) * self.scale[axis] + self.offset[axis]
        return places * cells / self.size_px[axis]


@dataclass(frozen=True)
class Whole:
    """What a model says of one stored volume, however many windows it took.

    Attributes:
        pooled: the mean over windows, each weighted by the voxels of the scan in it.
        regions: row-major over ``grid``; where windows overlap, the mean of what they say.
        grid: regions along each axis.
        mask: True where a region sees the scan.
        lattice: where the grid lies.
    """

    pooled: Float[np.ndarray, " dim"]
    regions: Float[np.ndarray, "regions dim"]
    grid: tuple[int, ...]
    mask: Bool[np.ndarray, " regions"]
    lattice: Lattice


@torch.inference_mode()
def whole_volume(
    encode: Encode,
    input: VolumeInput,
    stored: Int16[np.ndarray, "x y z"],
    *,
    device: torch.device | str = "cpu",
    windows: int = 2,
    overlap: float = 0.25,
) -> Whole:
    """Embed a stored volume; where it is larger than the tensor of a cropping input, by sliding windows.

    Memory is that of ``windows`` tensors and of one vector a region, however large the volume is.

    Args:
        encode: tensors and masks to features in the model's space.
        input: how a stored volume becomes tensors.
        stored: the volume.
        device: where ``encode`` computes.
        windows: encoded at once; the result depends on it by rounding alone.
        overlap: least share of a window that the next one shows again.
    """
    starts = input.tiles(stored.shape, overlap=overlap)
    pooled: Float[np.ndarray, " dim"] | None = None
    voxels = 0.0
    canvas: _Canvas | None = None
    for first in range(0, len(starts), windows):
        chunk = starts[first : first + windows]
        pairs = [input.apply(stored, start=start) for start in chunk]
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).to(device)
        masks = torch.from_numpy(np.stack([mask for _, mask in pairs])).to(device)
        features = encode(images, masks)
        weights = masks.flatten(1).sum(1).double().cpu().numpy()
        vectors = features.pooled.double().cpu().numpy()
        pooled = weights @ vectors if pooled is None else pooled + weights @ vectors
        voxels += float(weights.sum())
        regions = features.regions.float().cpu().numpy()
        seen = features.region_mask.cpu().numpy()
        if canvas is None:
            canvas = _Canvas(input, stored.shape, starts, tuple(features.region_grid), regions.shape[-1])
        for row, start in enumerate(chunk):
            canvas.add(start, regions[row], seen[row])
    assert pooled is not None and canvas is not None
    found, mask = canvas.finish()
    mean = (pooled / max(voxels, 1.0)).astype(np.float32)
    return Whole(mean, found, canvas.grid, mask, canvas.lattice)


class _Canvas:
    """The regions of all windows on one grid, whose cells are as large as those of a window."""

    def __init__(
        self,
        input: VolumeInput,
        shape: tuple[int, ...],
        starts: Sequence[tuple[int, ...]],
        grid: tuple[int, ...],
        width: int,
    ) -> None:
        self.input, self.shape, self.tile = input, shape, grid
        self.cell = np.asarray(input.size_px) / np.asarray(grid)
        scale, _ = input.frame(shape)
        origins = np.stack([-input.frame(shape, start=start)[1] for start in starts])
        self.low = origins.min(0)
        extent = origins.max(0) - self.low + input.size_px
        cells = np.ceil(extent / self.cell - _COVERED).astype(int)
        self.grid = tuple(cells.tolist())
        self.lattice = Lattice(
            tuple(scale.tolist()), tuple((-self.low).tolist()), tuple((cells * self.cell).tolist())
        )
        self.summed = np.zeros((*self.grid, width), np.float32)
        self.weight = np.zeros(self.grid, np.float32)

    def add(
        self,
        start: tuple[int, ...],
        regions: Float[np.ndarray, "regions width"],
        mask: Bool[np.ndarray, " regions"],
    ) -> None:
        """Add the regions of the window that begins at ``start``, each to the cells that it shares."""
        origin = (-self.input.frame(self.shape, start=start)[1] - self.low) / self.cell
        weight = mask.reshape(self.tile).astype(np.float32)
        summed = regions.reshape(*self.tile, -1) * weight[..., None]
        inside = []
        for axis, place in enumerate(origin.tolist()):
            first = math.floor(place + _COVERED)
            last = min(self.grid[axis], math.ceil(place + self.tile[axis] - _COVERED))
            shares = _shares(place - first, self.tile[axis], last - first)
            inside.append(slice(first, last))
            weight = np.moveaxis(np.tensordot(shares, weight, (1, axis)), 0, axis)
            summed = np.moveaxis(np.tensordot(shares, summed, (1, axis)), 0, axis)
        self.summed[tuple(inside)] += summed
        self.weight[tuple(inside)] += weight

    def finish(self) -> tuple[Float[np.ndarray, "regions width"], Bool[np.ndarray, " regions"]]:
        """Return the mean of what windows say of each cell, and the cells that some window saw."""
        mask = self.weight > _COVERED
        mean = self.summed / np.where(mask, self.weight, 1.0)[..., None]
        return mean.reshape(-1, mean.shape[-1]), mask.ravel()


def _shares(offset: float, cells: int, onto: int) -> Float[np.ndarray, "onto cells"]:
    """Return how much of each of ``cells`` unit cells, which begin at ``offset``, lies in each whole one."""
    begin = np.arange(cells)[None] + offset
    whole = np.arange(onto)[:, None]
    return np.clip(np.minimum(begin + 1, whole + 1) - np.maximum(begin, whole), 0, None).astype(np.float32)


def part_cells(
    numbers: UInt8[np.ndarray, "x y z"], *, lattice: Lattice, grid: Sequence[int], parts: int
) -> Bool[np.ndarray, "regions parts"]:
    """Return which cells of a grid hold a voxel of each part: column k − 1 is part k.

    Args:
        numbers: part of each stored voxel, 0 for none.
        lattice: where the grid lies over the stored volume.
        grid: regions along each axis.
        parts: how many.

    Examples:
        >>> numbers = np.zeros((4, 2, 2), np.uint8)
        >>> numbers[3] = 2
        >>> lattice = Lattice((1.0,) * 3, (0.0,) * 3, (4.0, 2.0, 2.0))
        >>> part_cells(numbers, lattice=lattice, grid=(2, 1, 1), parts=2).tolist()
        [[False, False], [False, True]]
    """
    found = np.zeros((math.prod(grid), parts), bool)
    where = np.nonzero(numbers)
    if not len(where[0]):
        return found
    cells, inside = np.zeros(len(where[0]), np.int64), np.ones(len(where[0]), bool)
    for axis, (voxels, count) in enumerate(zip(where, grid, strict=True)):
        place = np.floor(lattice.cell_of(axis, length=numbers.shape[axis], cells=count)).astype(np.int64)
        own = place[voxels]
        inside &= (own >= 0) & (own < count)
        cells = cells * count + own
    part = numbers[where].astype(np.int64) - 1
    inside &= part < parts
    found[cells[inside], part[inside]] = True
    return found
