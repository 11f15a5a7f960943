"""Stored arrays in batches of tensors; a larger volume by windows, its regions on one grid over all of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int16, Shaped, UInt8
from torch import Tensor

from medvl.errors import ConfigError
from medvl.features import ImageFeatures
from medvl.records import Box
from medvl.specs import InputSpec, VolumeInput

__all__ = [
    "WINDOWS", "Lattice", "Whole", "Window", "mean_answers", "part_cells", "whole_volumes", "window_batches",
]  # fmt: skip

WINDOWS = 4
"""Tensors of volumes that are encoded at once, which bounds memory; more of them save little time."""
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


@dataclass(frozen=True)
class Window:
    """One tensor's place in a sequence of stored arrays.

    Attributes:
        row: of the array.
        shape: of the array.
        starts: of every window of the array; None for a film, which is seen at once.
        number: of this window among them.
    """

    row: int
    shape: tuple[int, ...]
    starts: Sequence[tuple[int, ...]] | None
    number: int

    @property
    def last(self) -> bool:
        """Whether the array has no further window."""
        return self.starts is None or self.number + 1 == len(self.starts)


def window_batches(
    input: InputSpec | VolumeInput,
    arrays: Iterable[Shaped[np.ndarray, "..."]],
    *,
    size: int,
    device: torch.device | str = "cpu",
    overlap: float = 0.25,
) -> Iterator[
    tuple[tuple[Window, ...], Float[Tensor, "batch channels *spatial"], Bool[Tensor, " batch *spatial"]]
]:
    """Yield tensors and masks of films, or of all windows of volumes, ``size`` at once and in order.

    Windows of several volumes share a batch: a 3D convolution of one tensor on one thread takes several times
    as long as its share of a batch of two or more. Held at once are one stored array and one batch.

    Args:
        input: how a stored array becomes tensors.
        arrays: films or volumes, each taken when its first window is needed; sizes may differ.
        size: tensors in a batch; the last one may hold fewer.
        device: where the tensors go.
        overlap: least share of a window that the next one shows again.

    Raises:
        ConfigError: ``size`` is below 1.

    Examples:
        >>> volumes = [np.zeros((8, 4, 4), np.int16), np.zeros((4, 4, 4), np.int16)]
        >>> batches = window_batches(VolumeInput(size_px=(4, 4, 4)), volumes, size=3, overlap=0)
        >>> [[(window.row, window.number) for window in windows] for windows, _, _ in batches]
        [[(0, 0), (0, 1), (1, 0)]]
    """
    if size < 1:
        raise ConfigError(f"batch_size is {size}; allowed are 1 or more.")
    tensors = _tensors(input, arrays, overlap)
    while some := list(itertools.islice(tensors, size)):
        windows, images, masks = zip(*some, strict=True)
        found, seen = (torch.from_numpy(np.stack(each)).to(device) for each in (images, masks))
        yield windows, found, seen


def _tensors(
    input: InputSpec | VolumeInput, arrays: Iterable[Shaped[np.ndarray, "..."]], overlap: float
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    row = 0
    for array in arrays:
        if isinstance(input, VolumeInput):
            starts = input.tiles(array.shape, overlap=overlap)
            for number, start in enumerate(starts):
                yield Window(row, array.shape, starts, number), *input.apply(array, start=start)
        else:
            yield Window(row, array.shape, None, 0), *input.apply(array)
        row += 1
        del array  # which the loop, or enumerate, would hold while the next one is read


def mean_answers(
    ask: Callable[[Tensor, Tensor], Tensor],
    input: InputSpec | VolumeInput,
    arrays: Iterable[Shaped[np.ndarray, "..."]],
    *,
    size: int,
    device: torch.device | str = "cpu",
) -> Iterator[Float64[np.ndarray, " width"]]:
    """Yield the answer for each stored array; of larger volumes, the mean over windows by voxels of the scan.

    Args:
        ask: tensors and masks to one row each.
        input: how a stored array becomes tensors.
        arrays: films or volumes, see :func:`window_batches`.
        size: tensors at once; an answer depends on it by rounding alone.
        device: where ``ask`` computes.
    """
    summed, voxels = np.zeros(0), 0
    for windows, images, masks in window_batches(input, arrays, size=size, device=device):
        with torch.inference_mode():
            answers = ask(images, masks).double().cpu().numpy()
        counts = masks.flatten(1).sum(1).tolist()
        for window, answer, count in zip(windows, answers, counts, strict=True):
            first = window.number == 0
            summed, voxels = (answer * count, count) if first else (summed + answer * count, voxels + count)
            if window.last:
                yield summed / max(voxels, 1)


def whole_volumes(
    encode: Encode,
    input: VolumeInput,
    volumes: Iterable[Int16[np.ndarray, "_ _ _"]],
    *,
    device: torch.device | str = "cpu",
    size: int = WINDOWS,
    overlap: float = 0.25,
) -> Iterator[Whole]:
    """Yield what a model says of each stored volume, by sliding windows where it is larger than a tensor.

    Memory is that of one stored volume, of ``size`` tensors and of one vector a region.

    Args:
        encode: tensors and masks to features in the model's space.
        input: how a stored volume becomes tensors.
        volumes: see :func:`window_batches`.
        device: where ``encode`` computes.
        size: windows encoded at once; the result depends on it by rounding alone.
        overlap: least share of a window that the next one shows again.
    """
    canvas: _Canvas | None = None
    for windows, images, masks in window_batches(input, volumes, size=size, device=device, overlap=overlap):
        with torch.inference_mode():
            features = encode(images, masks)
            pooled = features.pooled.double().cpu().numpy()
            regions = features.regions.float().cpu().numpy()
            seen = features.region_mask.cpu().numpy()
        counts = masks.flatten(1).sum(1).tolist()
        for row, window in enumerate(windows):
            assert window.starts is not None
            if canvas is None:
                grid = tuple(features.region_grid)
                canvas = _Canvas(input, window.shape, window.starts, grid, regions.shape[-1])
            canvas.add(window.starts[window.number], pooled[row], counts[row], regions[row], seen[row])
            if window.last:
                yield canvas.finish()
                canvas = None


class _Canvas:
    """What all windows of a volume say: regions on one grid, with cells as large as those of a window."""

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
        self.pooled, self.voxels = np.zeros(width), 0

    def add(
        self,
        start: tuple[int, ...],
        pooled: Float[np.ndarray, " width"],
        voxels: int,
        regions: Float[np.ndarray, "regions width"],
        mask: Bool[np.ndarray, " regions"],
    ) -> None:
        """Add the window that begins at ``start``; each of its regions goes to the cells that it shares."""
        self.pooled += pooled * voxels
        self.voxels += voxels
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

    def finish(self) -> Whole:
        """Return the mean of what windows say of the volume and of each cell that some window saw."""
        pooled = (self.pooled / max(self.voxels, 1)).astype(np.float32)
        mask = self.weight > _COVERED
        mean = self.summed / np.where(mask, self.weight, 1.0)[..., None]
        return Whole(pooled, mean.reshape(-1, mean.shape[-1]), self.grid, mask.ravel(), self.lattice)


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
