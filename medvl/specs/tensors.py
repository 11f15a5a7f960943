"""How a stored CT volume becomes the model's tensor: where a crop lies, and windows as channels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medvl.errors import ConfigError
from medvl.records import Box
from medvl.specs.area import Axis, resampled
from medvl.specs.base import Spec

__all__ = ["VolumeInput"]


class VolumeInput(Spec):
    """How the stored volume becomes the model's tensor: crop or resize to a fixed size, windows as channels.

    A channel holds one window: HU ``c − w/2`` to ``c + w/2`` become 0 to 1, clipped, then mean and
    deviation are taken off. Voxels outside of the volume are the lowest value and leave the mask.

    Args:
        size_px: voxels of the tensor along x, y and z.
        windows: centre and width in HU, one channel each.
        fit: ``"crop"`` keeps the spacing and takes the middle (in training a random place); ``"resize"`` fits
            the whole volume into the tensor, its aspect ratio in voxels kept.
        mean, std: of a channel after its window, one value for all or one each.
    """

    what: ClassVar[str] = "volume input spec"
    kind: Literal["volume"] = "volume"
    size_px: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(
        default=((-600.0, 1500.0), (40.0, 400.0)), min_length=1
    )
    fit: Literal["crop", "resize"] = "crop"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    @model_validator(mode="after")
    def _one_each(self) -> VolumeInput:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(values)} values; allowed: 1 or {self.channels}, one a window"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; each must be above 0")
        return self

    @property
    def channels(self) -> int:
        """Channels of the tensor: one a window."""
        return len(self.windows)

    def span(
        self, shape: tuple[int, ...], *, start: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return first and last voxel (exclusive) of a stored volume that the tensor shows.

        ``apply(stored[span])`` is ``apply(stored)``, so a patch of the store is enough.

        Args:
            shape: of the stored volume.
            start: of a crop; the middle if None. It is moved until the crop lies within the volume.

        Examples:
            >>> VolumeInput(size_px=(4, 4, 4)).span((10, 3, 4), start=(8, 0, 0))
            ((6, 0, 0), (10, 3, 4))
        """
        if self.fit == "resize":
            return (0,) * len(shape), tuple(shape)
        free = [max(0, length - size) for length, size in zip(shape, self.size_px, strict=True)]
        first = [each // 2 for each in free] if start is None else start
        first = [min(max(0, int(at)), most) for at, most in zip(first, free, strict=True)]
        ends = (min(at + size, length) for at, size, length in zip(first, self.size_px, shape, strict=True))
        return tuple(first), tuple(ends)

    def tiles(self, shape: tuple[int, ...], *, overlap: float = 0.25) -> list[tuple[int, ...]]:
        """Return the starts of crops that cover a stored volume, each the same way apart along an axis.

        Args:
            shape: of the stored volume.
            overlap: least share of a crop that the next one shows again, from 0 to below 1.

        Raises:
            ConfigError: ``overlap`` is out of range.

        Examples:
            >>> VolumeInput(size_px=(4, 4, 4)).tiles((10, 3, 4), overlap=0.25)
            [(0, 0, 0), (3, 0, 0), (6, 0, 0)]
        """
        if not 0 <= overlap < 1:
            raise ConfigError(f"the overlap is {overlap:g}; allowed: 0 to below 1.")
        if self.fit == "resize":
            return [(0,) * len(shape)]
        starts = []
        for length, size in zip(shape, self.size_px, strict=True):
            free, step = max(0, length - size), max(1, int(size * (1 - overlap)))
            starts.append([round(at) for at in np.linspace(0, free, -(-free // step) + 1)])
        return list(itertools.product(*starts))

    def frame(
        self, shape: tuple[int, ...], *, start: Sequence[int] | None = None
    ) -> tuple[Float[np.ndarray, " axes"], Float[np.ndarray, " axes"]]:
        """Return scale and offset of each axis: tensor coordinate = stored coordinate · scale + offset.

        Coordinates count from the edge of the first voxel. :class:`medvl.specs.InputSpec` has the same.

        Args:
            shape: of the stored volume.
            start: of a crop, as for :meth:`span`.

        Examples:
            >>> scale, offset = VolumeInput(size_px=(4, 4, 4)).frame((10, 3, 4))
            >>> scale.tolist(), offset.tolist()
            ([1.0, 1.0, 1.0], [-3.0, 0.0, 0.0])
        """
        first, last = self.span(shape, start=start)
        shown = np.subtract(last, first)
        fitted = np.array(self._fitted(tuple(shown.tolist())))
        scale = fitted / shown
        return scale, (np.array(self.size_px) - fitted) // 2 - np.array(first) * scale

    def place_box(self, box: Box, shape: tuple[int, ...], *, start: Sequence[int] | None = None) -> Box:
        """Move a box from voxels of the stored array to voxels of the tensor; it may end outside of a crop.

        Raises:
            ConfigError: the box has no z.
        """
        if box.z0 is None or box.z1 is None:
            raise ConfigError(f"the box of {box.label!r} has no z; a box in a volume has six sides.")
        scale, offset = self.frame(shape, start=start)
        low = np.array([box.x0, box.y0, box.z0]) * scale + offset
        high = np.array([box.x1, box.y1, box.z1]) * scale + offset
        (x0, y0, z0), (x1, y1, z1) = low.tolist(), high.tolist()
        return Box(box.label, x0, y0, x1, y1, z0, z1)

    def _fitted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many voxels of the tensor along each axis a part of the volume takes."""
        if self.fit == "crop":
            return shape
        scale = min(size / length for size, length in zip(self.size_px, shape, strict=True))
        sides = zip(self.size_px, shape, strict=True)
        return tuple(min(size, max(1, round(length * scale))) for size, length in sides)

    def window(self, hu: Shaped[np.ndarray, "x y z"]) -> Float[np.ndarray, "channels x y z"]:
        """Return the normalised channels of values in HU."""
        result = np.empty((self.channels, *hu.shape), np.float32)
        self.window_into(hu, result)
        return result

    def window_into(self, hu: Shaped[np.ndarray, "x y z"], rooms: Iterable[np.ndarray]) -> None:
        """Write what :meth:`window` returns into one room a channel, without a copy."""
        for room, (centre, width), (low, high) in zip(rooms, self.windows, self._ends(), strict=True):
            gain = (high - low) / width
            np.multiply(hu, np.float32(gain), out=room, casting="unsafe")
            room += np.float32(low - (centre - width / 2) * gain)
            np.clip(room, low, high, out=room)

    def _ends(self) -> list[tuple[np.float32, np.float32]]:
        """Return what 0 and 1 of each window become."""
        ends = []
        for channel in range(self.channels):
            mean, std = self.mean[channel % len(self.mean)], self.std[channel % len(self.std)]
            ends.append((np.float32((0 - mean) / std), np.float32((1 - mean) / std)))
        return ends

    def fitted(self, part: Int16[np.ndarray, "i j k"]) -> Int16[np.ndarray, "x y z"]:
        """Return what a tensor shows of a volume, or of a part of it, in HU and without padding."""
        fitted = self._fitted(part.shape)
        if fitted == part.shape:
            return part
        axes = [Axis(have, take, 0.0, have) for have, take in zip(part.shape, fitted, strict=True)]
        ends = np.iinfo(np.int16)
        return resampled(part, axes, lowest=int(ends.min), highest=int(ends.max))

    def apply(
        self, stored: Int16[np.ndarray, "i j k"], *, start: Sequence[int] | None = None
    ) -> tuple[Float[np.ndarray, "channels x y z"], Bool[np.ndarray, "x y z"]]:
        """Return the model's tensor and the mask of voxels that come from the scan.

        Args:
            stored: the stored volume, or the part of it that :meth:`span` tells.
            start: of a crop, as for :meth:`span`.
        """
        first, last = self.span(stored.shape, start=start)
        part = self.fitted(stored[tuple(map(slice, first, last))])
        fitted = part.shape
        tensor = np.empty((self.channels, *self.size_px), np.float32)
        mask = np.zeros(self.size_px, bool)
        inside = tuple(
            slice((size - take) // 2, (size - take) // 2 + take)
            for size, take in zip(self.size_px, fitted, strict=True)
        )
        mask[inside] = True
        if fitted != self.size_px:
            for channel, (low, _) in zip(tensor, self._ends(), strict=True):
                channel[...] = low
        self.window_into(part, [channel[inside] for channel in tensor])
        return tensor, mask
