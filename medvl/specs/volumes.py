"""How a CT volume becomes the stored array, and the stored array the model's tensor: HU until the windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped, UInt8
from pydantic import Field, PositiveFloat, PositiveInt

from medvl.anatomy import PARTS
from medvl.images import Image
from medvl.records import Box
from medvl.specs.base import Spec

__all__ = ["VolumeGrid", "VolumeInput", "VolumeSpec"]


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
    """How a CT volume becomes the stored array: canonical axes → body → spacing → range → int16, in HU.

    Axes are flipped and permuted until they point right, front and top as nearly as they can; oblique scans
    stay oblique. The box of the body with its margin is cut out, then each axis is resampled: means over
    intervals where it is reduced, linear where it is enlarged. Values stay Hounsfield units: windows belong
    to :class:`VolumeInput`, so that one store serves every window.

    Args:
        spacing_mm: of the stored voxels along right, front and top; None keeps the scan's own.
        crop: ``"body"`` cuts out the box of the largest body in the scan, ``"none"`` keeps all.
        margin_mm: kept around the body.
        lowest_hu, highest_hu: values beyond are clipped to them.
        parts: names of the anatomical parts; a stored volume of parts holds k for part number k from 1.
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
    version: Literal[1] = 1

    def grid(self, image: Image) -> VolumeGrid:
        """Return where the stored voxels of a volume lie.

        Raises:
            BadAffine: the volume does not say how it lies.
            ConfigError: not one channel of three axes in HU.
        """
        raise NotImplementedError

    def apply(self, image: Image, *, grid: VolumeGrid | None = None) -> Int16[np.ndarray, "x y z"]:
        """Return the stored array of a volume, on ``grid`` or on :meth:`grid` of the image itself."""
        raise NotImplementedError

    def apply_parts(self, parts: Image, grid: VolumeGrid) -> UInt8[np.ndarray, "x y z"]:
        """Return a volume of part numbers on ``grid``: the number of the nearest voxel, 0 outside of it.

        The numbers may lie on any other grid, of another spacing, orientation or extent.
        """
        raise NotImplementedError


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

    @property
    def channels(self) -> int:
        """Channels of the tensor: one a window."""
        return len(self.windows)

    def frame(self, shape: tuple[int, ...]) -> tuple[Float[np.ndarray, " axes"], Float[np.ndarray, " axes"]]:
        """Return scale and offset of each axis: tensor coordinate = stored coordinate · scale + offset.

        Coordinates count from the edge of the first voxel. :class:`medvl.specs.InputSpec` has the same.
        """
        raise NotImplementedError

    def place_box(self, box: Box, shape: tuple[int, ...]) -> Box:
        """Move a box from voxels of the stored array to voxels of the tensor."""
        raise NotImplementedError

    def window(self, hu: Shaped[np.ndarray, "x y z"]) -> Float[np.ndarray, "channels x y z"]:
        """Return the normalised channels of values in HU."""
        raise NotImplementedError

    def apply(
        self, stored: Int16[np.ndarray, "x y z"]
    ) -> tuple[Float[np.ndarray, "channels x y z"], Bool[np.ndarray, "x y z"]]:
        """Return the model's tensor and the mask of voxels that come from the scan."""
        raise NotImplementedError
