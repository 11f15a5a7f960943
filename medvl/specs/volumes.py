"""How a CT volume becomes the stored array, in HU: axes, body, range, spacing; and parts on the same grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int16, Shaped, UInt8
from pydantic import Field, PositiveFloat, model_serializer, model_validator

from medvl.anatomy import PARTS
from medvl.errors import BadAffine, ConfigError
from medvl.images import Image, Unit
from medvl.specs.area import EDGE, Axis, resampled
from medvl.specs.base import Spec
from medvl.specs.body import body_box
from medvl.specs.orientation import canonical

__all__ = ["VolumeGrid", "VolumeSpec"]

SAME = 1e-3
"""Voxels within which a grid is that of the scan, so that its values are taken as they are."""
ASKEW = 0.01
"""Voxels at the far end of a grid by which its axes may turn away from those of the scan."""


@dataclass(frozen=True)
class VolumeGrid:
    """The voxels of a stored volume.

    Attributes:
        shape: voxels along x (to the right), y (to the front) and z (to the top).
        affine_ras: voxel index to RAS+ millimetres; oblique where the scan was.
    """

    shape: tuple[int, int, int]
    affine_ras: Float[np.ndarray, "4 4"]


class VolumeSpec(Spec):
    """How a CT volume becomes the stored array: canonical axes → body → range → spacing → int16 HU.

    Axes are flipped and permuted until they point right, front and top as nearly as they can; oblique scans
    stay oblique. The box of the body with its margin is cut out (:func:`medvl.specs.body.body_box`), values
    are brought into the range, then each axis is resampled: means over intervals where it is reduced, linear
    where it is enlarged. Values stay Hounsfield units: windows belong to :class:`medvl.specs.VolumeInput`, so
    that one store serves every window.

    Args:
        spacing_mm: of the stored voxels along right, front and top; None keeps the scan's own.
        crop: ``"body"`` cuts out the box of the largest body in the scan, ``"none"`` keeps all.
        margin_mm: kept around the body.
        lowest_hu, highest_hu: values beyond become them, before any mean is taken; what is no number becomes
            the lowest.
        parts: names of the anatomical parts; a stored volume of parts holds k for part number k from 1.
        frame: which volume of a file with four axes the readers take, from 0; None refuses such files. A file
            with three axes holds one volume, which is taken whatever this is.
        version: of the rules above.
    """

    what: ClassVar[str] = "volume spec"
    kind: Literal["volume"] = "volume"
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = (1.5, 1.5, 3.0)
    crop: Literal["body", "none"] = "body"
    margin_mm: float = Field(default=10.0, ge=0, le=500)
    lowest_hu: int = Field(default=-1024, ge=-32768, le=32767)
    highest_hu: int = Field(default=3071, ge=-32768, le=32767)
    parts: tuple[str, ...] = PARTS["ct"]
    frame: int | None = Field(default=None, ge=0)
    version: Literal[1] = 1

    @model_validator(mode="after")
    def _ordered(self) -> VolumeSpec:
        if self.highest_hu <= self.lowest_hu:
            raise ValueError(f"highest_hu is {self.highest_hu}; it must be above lowest_hu, {self.lowest_hu}")
        return self

    @model_serializer(mode="wrap")
    def _without_frame(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave a frame that is not chosen out of the digest: stores of volumes alone keep theirs."""
        return {name: value for name, value in handler(self).items() if name != "frame" or value is not None}

    def grid(self, image: Image) -> VolumeGrid:
        """Return where the stored voxels of a volume lie.

        The spacing is exactly that of the spec; the last half voxel that it leaves over is shared between
        both ends of an axis.

        Raises:
            BadAffine: the volume does not say how it lies.
            ConfigError: not one channel of three axes in HU.
        """
        array, turned_affine, spacing = _turned(image)
        box = [(0, size) for size in array.shape]
        if self.crop == "body":
            box = list(body_box(array, spacing, margin_mm=self.margin_mm))
        wanted = self.spacing_mm or spacing
        shape, change = [], np.eye(4)
        for axis, ((first, last), edge, goal) in enumerate(zip(box, spacing, wanted, strict=True)):
            step = goal / edge
            if abs(step - 1) * (last - first) < SAME:
                step = 1.0
            count = max(1, round((last - first) / step))
            start = first + (last - first - count * step) / 2
            shape.append(count)
            change[axis, axis], change[axis, 3] = step, start + (step - 1) / 2  # centres, not edges
        return VolumeGrid((shape[0], shape[1], shape[2]), turned_affine @ change)

    def apply(self, image: Image, *, grid: VolumeGrid | None = None) -> Int16[np.ndarray, "x y z"]:
        """Return the stored array of a volume, on ``grid`` or on :meth:`grid` of the image itself.

        Held at once are the image as it is, the result and a few planes of float32.

        Raises:
            BadAffine: the volume does not say how it lies.
            ConfigError: not one channel of three axes in HU, or a grid whose axes are not those of the image.
        """
        array, affine, _ = _turned(image)
        grid = grid or self.grid(image)
        change = np.linalg.inv(affine) @ grid.affine_ras
        steps = np.diagonal(change)[:3]
        askew = np.abs(change[:3, :3] - np.diag(steps)) * np.array(grid.shape)
        if steps.min() <= 0 or askew.max() > ASKEW:
            raise ConfigError(
                f"the grid is turned against the volume by up to {askew.max():.2g} voxels at its far end.",
                hint="Use a grid that VolumeSpec.grid made of a volume with the same axes.",
            )
        axes = [
            _axis(pixels, count, step=float(step), centre=float(centre))
            for pixels, count, step, centre in zip(array.shape, grid.shape, steps, change[:3, 3], strict=True)
        ]
        return resampled(array, axes, lowest=self.lowest_hu, highest=self.highest_hu)

    def apply_parts(self, parts: Image, grid: VolumeGrid) -> UInt8[np.ndarray, "x y z"]:
        """Return a volume of part numbers on ``grid``: the number of the nearest voxel, 0 outside of it.

        The numbers may lie on any other grid, of another spacing, orientation or extent. Nearest is the voxel
        at the centre of the stored one, so that an outline keeps its place but for rounding, half a stored
        voxel at most. Where that centre lies midway between two voxels, at even ratios of the spacings, the
        one further right, front or top is taken: outlines then lie half a voxel of the numbers further left,
        back or low in the mean.

        Raises:
            BadAffine: the numbers do not say how they lie.
            ConfigError: not one channel of three axes, or a number beyond the last part.
        """
        array = _one_volume(parts)
        if parts.affine_ras is None:
            raise BadAffine("the volume of parts does not say how it lies.", hint="Export it again.")
        low, high = int(array.min()), int(array.max())
        if not 0 <= low <= high <= len(self.parts):
            raise ConfigError(
                f"the volume of parts holds numbers from {low} to {high}; allowed: 0 to {len(self.parts)}, "
                f"the parts {', '.join(self.parts)}.",
                hint="Map structures to parts by a label map first.",
            )
        return _nearest(array, np.linalg.inv(parts.affine_ras) @ grid.affine_ras, grid.shape)


def _one_volume(image: Image) -> Shaped[np.ndarray, "x y z"]:
    if image.array.ndim != 4 or image.array.shape[0] != 1:
        raise ConfigError(
            f"a volume has 1 channel and 3 axes, got an array of shape {image.array.shape}.",
            hint="Read a series or a NIfTI file; choose one frame of several.",
        )
    return image.array[0]


def _turned(
    image: Image,
) -> tuple[Shaped[np.ndarray, "x y z"], Float[np.ndarray, "4 4"], tuple[float, ...]]:
    """Return a volume in HU along right, front and top, its affine and its spacing."""
    _one_volume(image)
    if image.unit is not Unit.HU:
        raise ConfigError(
            f"the values of the volume are {image.unit.value}; a volume spec needs HU.",
            hint="Say so when you read it, if its values are Hounsfield units.",
        )
    turned = canonical(image)
    assert turned.affine_ras is not None and turned.spacing_mm is not None
    return turned.array[0], turned.affine_ras, turned.spacing_mm


def _axis(pixels: int, count: int, *, step: float, centre: float) -> Axis:
    """Return the axis whose first interval has its centre there; what is nearly a voxel grid is one."""
    if abs(step - 1) * count < SAME:
        step = 1.0
    start = centre + (1 - step) / 2  # the first pixel has its centre at 0 and its edge at −1/2
    if abs(start - round(start)) < SAME:
        start = float(round(start))
    return Axis(pixels, count, start, step * count)


def _nearest(
    array: Shaped[np.ndarray, "i j k"], change: Float[np.ndarray, "4 4"], shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "x y z"]:
    """Return the value of the voxel nearest to each index of the result, which ``change`` takes there."""
    result = np.zeros(shape, np.uint8)
    rest = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape[1:]), indexing="ij")
    plane = [row[1] * rest[0] + row[2] * rest[1] for row in change[:3]]
    # Between two voxels the one further right, front or top is taken, however the scan was stored.
    edge = [0.5 + math.copysign(EDGE, row[np.abs(row[:3]).argmax()]) for row in change[:3]]
    for x in range(shape[0]):  # a plane at a time, so that the places take no more room than that
        places = [
            np.floor(each + (row[0] * x + row[3] + more)).astype(np.int32)
            for each, row, more in zip(plane, change[:3], edge, strict=True)
        ]
        inside = np.ones(shape[1:], bool)
        for place, size in zip(places, array.shape, strict=True):
            inside &= (place >= 0) & (place < size)
        if inside.any():
            result[x][inside] = array[tuple(place[inside] for place in places)]
    return result
