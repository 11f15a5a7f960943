"""Volumes as the pictures of a batch: a crop at some place or the whole, augmented in HU, then windowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Int16, Shaped, UInt8

from medvl.data.augment import Motion, VolumeAugment
from medvl.data.pictures import Pixels, Streams
from medvl.data.views import Look
from medvl.records import Record
from medvl.specs import VolumeInput
from medvl.store import Store

__all__ = ["Volumes", "moved", "moved_parts"]

_NOTHING = -32768
"""HU of what no scan shows: below every window."""
_AIR = -1024
"""HU that a scan fades into at its border, where it is read between voxels."""

Span: TypeAlias = tuple[slice, slice, slice]


@dataclass(frozen=True)
class _Held:
    """A volume in memory."""

    hu: Int16[np.ndarray, "x y z"]
    parts: UInt8[np.ndarray, "x y z"] | None


class Volumes:
    """Crops of stored volumes, or whole ones, with the anatomical part of each voxel where it is known.

    They are held in memory as int16 when all of them fit into ``cache_mb``; else only the patch that a
    picture shows is read from the store. Both give the same bits.

    Args:
        store: where the volumes are.
        records: one a picture.
        input: how a stored volume becomes the tensor.
        augment: random changes; None for none.
        place: where a volume larger than the tensor is cropped, in the middle or at random.
        parts: whether the parts of voxels are asked for; they come if any record has them, and a record
            without them has part 0 everywhere.
        cache_mb: memory for volumes, in MiB.
    """

    def __init__(
        self,
        store: Store,
        records: Sequence[Record],
        *,
        input: VolumeInput,
        augment: VolumeAugment | None = None,
        place: Literal["middle", "random"] = "middle",
        parts: bool = False,
        cache_mb: int = 2048,
    ) -> None:
        self.store, self.records, self.input = store, records, input
        self.augment, self.place = augment, place
        self.has_parts = parts and any(record.parts_size for record in records)
        self._shapes = [self._canvas_shape(record) for record in records]
        bytes_each = 3 if self.has_parts else 2
        voxels = sum(int(np.prod(shape)) for shape in self._shapes)
        self._held: list[_Held] | None = None
        if bytes_each * voxels <= cache_mb * 2**20:
            self._held = [self._whole(row) for row in range(len(records))]

    @property
    def cached(self) -> bool:
        """Whether all volumes are in memory."""
        return self._held is not None

    def paint(self, looks: Sequence[Look], pixels: Pixels, *, stream: Streams) -> None:
        """Write the pictures of ``looks``, their masks and their parts."""
        for i, look in enumerate(looks):
            drawn = stream(look) if self.augment is not None or self.place == "random" else None
            parts = None if pixels.parts is None else pixels.parts[i]
            self._paint(look.image, pixels.images[i], pixels.mask[i], parts, drawn)

    def _paint(
        self,
        row: int,
        image: Float[np.ndarray, "channels x y z"],
        mask: Bool[np.ndarray, "x y z"],
        parts: UInt8[np.ndarray, "x y z"] | None,
        stream: np.random.Generator | None,
    ) -> None:
        size, shape = np.asarray(self.input.size_px), np.asarray(self._shapes[row])
        start = self._start(row, shape, stream)
        if self.augment is None or stream is None:
            motion = None
        else:
            motion = self.augment.motion(self.input.size_px, stream)
        if motion is None or motion.still:
            low, high = np.maximum(start, 0), np.minimum(start + size, shape)
            inside = _span(low - start, high - start)
            hu, numbers = self._read(row, low, high, parts=parts is not None)
            if motion is not None and self.augment is not None and stream is not None:
                hu = self.augment.values(hu.astype(np.float32), stream)
            canvas = hu
            if hu.shape != self.input.size_px:
                canvas = np.full(self.input.size_px, _NOTHING, hu.dtype)
                canvas[inside] = hu
            mask[...] = False
            mask[inside] = True
            if parts is not None:
                parts[...] = 0
                parts[inside] = 0 if numbers is None else numbers
        else:
            assert self.augment is not None and stream is not None
            where = _looked_at(motion, size, start)
            low, high = _reach(where, shape)
            hu, numbers = self._read(row, low, high, parts=parts is not None)
            canvas, mask[...] = moved(hu, _relative(where, low), whole=(-low, shape - low))
            canvas = self.augment.values(canvas, stream)
            canvas[~mask] = _NOTHING
            if parts is not None:
                parts[...] = 0 if numbers is None else moved_parts(numbers, _relative(where, low))
        self.input.window_into(canvas, image)

    def _start(
        self, row: int, shape: Int[np.ndarray, "3"], stream: np.random.Generator | None
    ) -> Int[np.ndarray, "3"]:
        """Return where the tensor begins, in voxels of the canvas; negative where it is padded."""
        size = np.asarray(self.input.size_px)
        if self.input.fit == "resize":
            _, offset = self.input.frame(self.records[row].shape)
            return -np.rint(offset).astype(np.int64)
        room = shape - size
        middle = np.where(room < 0, -(-room // 2), room // 2)
        if self.place == "middle" or stream is None:
            return middle
        drawn = np.floor(stream.uniform(size=3) * (np.maximum(room, 0) + 1)).astype(np.int64)
        return np.where(room < 0, middle, drawn)

    def _canvas_shape(self, record: Record) -> tuple[int, ...]:
        if self.input.fit == "crop":
            return record.shape
        scale, _ = self.input.frame(record.shape)
        return tuple(np.rint(scale * record.shape).astype(int).tolist())

    def _whole(self, row: int) -> _Held:
        record = self.records[row]
        stored = self.store.pixels(record)
        parts = self.store.parts(record) if self.has_parts else None
        if self.input.fit == "resize":
            stored = self.input.fitted(stored)
            parts = None if parts is None else _nearest(parts, stored.shape)
        return _Held(stored, parts)

    def _read(
        self, row: int, low: Int[np.ndarray, "3"], high: Int[np.ndarray, "3"], *, parts: bool
    ) -> tuple[Int16[np.ndarray, "x y z"], UInt8[np.ndarray, "x y z"] | None]:
        if self._held is None and self.input.fit == "crop":
            record, begin, end = self.records[row], tuple(low.tolist()), tuple(high.tolist())
            numbers = self.store.parts(record, begin, end) if parts else None
            return self.store.patch(record, begin, end), numbers
        held = self._whole(row) if self._held is None else self._held[row]
        inside = _span(low, high)
        return held.hu[inside], None if held.parts is None or not parts else held.parts[inside]


@dataclass(frozen=True)
class _Where:
    """The place in a volume that each voxel of a tensor shows; z depends on z alone."""

    x: Float[np.ndarray, "x y"]
    y: Float[np.ndarray, "x y"]
    z: Float[np.ndarray, " z"]


def _looked_at(motion: Motion, size: Int[np.ndarray, "3"], start: Int[np.ndarray, "3"]) -> _Where:
    """Return the places that the centres of a tensor's voxels show, counted from the canvas' edge."""
    x, y, z = (np.arange(n) + 0.5 - n / 2 for n in size)
    centre = size / 2 + motion.shift + start
    m = motion.matrix
    return _Where(
        m[0, 0] * x[:, None] + m[0, 1] * y[None] + centre[0],
        m[1, 0] * x[:, None] + m[1, 1] * y[None] + centre[1],
        m[2, 2] * z + centre[2],
    )


def _reach(where: _Where, shape: Int[np.ndarray, "3"]) -> tuple[Int[np.ndarray, "3"], Int[np.ndarray, "3"]]:
    """Return the first voxel that is read along each axis, and the one after the last; at least one."""
    axes = (where.x, where.y, where.z)
    low = np.array([int(np.floor(axis.min() - 0.5)) for axis in axes])
    high = np.array([int(np.floor(axis.max() - 0.5)) + 2 for axis in axes])
    low = np.clip(low, 0, shape - 1)
    return low, np.clip(high, low + 1, shape)


def _relative(where: _Where, low: Int[np.ndarray, "3"]) -> _Where:
    return _Where(where.x - low[0], where.y - low[1], where.z - low[2])


def moved(
    patch: Int16[np.ndarray, "px py pz"],
    where: _Where,
    *,
    whole: tuple[Int[np.ndarray, "3"], Int[np.ndarray, "3"]],
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Return the values at some places between voxels, and which of them lie in the scan.

    Linear along each axis; beyond the patch is air. Since z mixes with no other axis, rows along z are
    gathered for the four neighbours in x and y, and z is one product with a narrow matrix.

    Args:
        patch: the voxels that the places need.
        where: the places, counted from the patch's edge.
        whole: edges of the whole volume, counted from the patch's edge.
    """
    above = patch.astype(np.float32) - np.float32(_AIR)
    rows: Float[np.ndarray, "x y pz"] = np.zeros((*where.x.shape, patch.shape[2]), np.float32)
    x, y = where.x - 0.5, where.y - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = x0 + dx, y0 + dy
            there = (i >= 0) & (i < patch.shape[0]) & (j >= 0) & (j < patch.shape[1])
            weight = (1 - np.abs(x - i)) * (1 - np.abs(y - j)) * there
            near = above[np.clip(i, 0, patch.shape[0] - 1), np.clip(j, 0, patch.shape[1] - 1)]
            near *= weight[..., None].astype(np.float32)
            rows += near
    hu = rows @ _along(where.z, patch.shape[2])
    hu += np.float32(_AIR)
    (left, back, low), (right, front, high) = whole
    flat = (where.x >= left) & (where.x < right) & (where.y >= back) & (where.y < front)
    return hu, flat[..., None] & ((where.z >= low) & (where.z < high))


def _along(z: Float[np.ndarray, " z"], voxels: int) -> Float[np.ndarray, "pz z"]:
    """Return the share of each voxel in each place along one axis."""
    distance = np.abs(np.arange(voxels)[:, None] - (z - 0.5)[None])
    return np.maximum(1 - distance, 0).astype(np.float32)


def moved_parts(parts: UInt8[np.ndarray, "px py pz"], where: _Where) -> UInt8[np.ndarray, "x y z"]:
    """Return the number of the voxel that each place lies in, 0 beyond the patch."""
    i, j, k = (np.floor(axis).astype(np.int64) for axis in (where.x, where.y, where.z))
    flat = (i >= 0) & (i < parts.shape[0]) & (j >= 0) & (j < parts.shape[1])
    deep = (k >= 0) & (k < parts.shape[2])
    rows = parts[np.clip(i, 0, parts.shape[0] - 1), np.clip(j, 0, parts.shape[1] - 1)]
    found = rows[..., np.clip(k, 0, parts.shape[2] - 1)]
    return np.where(flat[..., None] & deep, found, 0).astype(np.uint8)


def _nearest(parts: UInt8[np.ndarray, "px py pz"], shape: Sequence[int]) -> UInt8[np.ndarray, "x y z"]:
    """Return the part at the centre of each voxel of another size."""
    sides = zip(parts.shape, shape, strict=True)
    return parts[np.ix_(*(((np.arange(take) + 0.5) * have / take).astype(np.int64) for have, take in sides))]


def _span(low: Shaped[np.ndarray, "3"], high: Shaped[np.ndarray, "3"]) -> Span:
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z
