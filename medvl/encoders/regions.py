"""What image encoders share: the catalogue, the feature map as regions, and which regions see film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from medvl.catalogue import Catalogue
from medvl.encoders.inflate import inflate
from medvl.encoders.tower import Tower
from medvl.errors import ConfigError
from medvl.features import ImageFeatures

__all__ = [
    "IMAGE_ENCODERS",
    "ConvTower",
    "ImageTower",
    "check_least",
    "cover",
    "from_map",
    "masked_mean",
    "part_cover",
]

IMAGE_ENCODERS: Catalogue[ImageTower] = Catalogue("image encoder")


class ImageTower(Tower):
    """The base of the image encoders: :class:`medvl.features.ImageEncoder` with a training policy.

    ``axes`` is 2 for films and 3 for volumes, whose tensors run along x, y and z. ``least_px`` is the
    shortest side from which every pooling still has something to pool.
    """

    width: int
    region_width: int
    channels: int
    axes: int = 2
    least_px: int = 1

    def _check(self, images: Tensor) -> None:
        if images.ndim - 2 != self.axes:
            raise ConfigError(
                f"the images have {images.ndim - 2} axes; encoder '{self.name}' was built for {self.axes}.",
                hint="Films have 2 and volumes 3; the input spec of the recipe decides which.",
            )
        if images.shape[1] != self.channels:
            raise ConfigError(
                f"the images have {images.shape[1]} channels; encoder '{self.name}' takes {self.channels}.",
                hint="Set 'channels' of the encoder and of the input spec to the same number.",
            )
        check_least(self.name, images.shape[2:], least_px=self.least_px)


def check_least(name: str, size_px: Sequence[int], *, least_px: int) -> None:
    """Refuse images that leave an encoder nothing to pool.

    Raises:
        ConfigError: a side below ``least_px``.
    """
    if min(size_px) < least_px:
        raise ConfigError(
            f"the images have {' x '.join(map(str, size_px))} pixels; encoder '{name}' takes them from "
            f"{least_px} along each axis.",
            hint="Change size_px of the input spec, or give the encoder fewer blocks.",
        )


class ConvTower(ImageTower):
    """A convolutional trunk whose last feature map is the regions and whose mean is the pooled vector.

    ``pooled = Σ_k m_k r_k / Σ_k m_k`` over the regions r_k that see film (mask m_k), so the black bars of a
    letterboxed film never dilute it. With one linear projection for both, the score of an image
    is therefore the mean of the scores of its regions (class activation maps, Zhou et al. 2016).
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        width: int,
        channels: int,
        name: str,
        architecture: Mapping[str, Any],
        axes: int = 2,
        least_px: int = 1,
    ) -> None:
        super().__init__(name=name, architecture=architecture)
        self.trunk = trunk
        self.least_px = least_px
        self.width = self.region_width = width
        self.channels, self.axes = channels, axes

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> ImageFeatures:
        """Return the masked mean of the last feature map, and the map itself as regions."""
        self._check(images)
        return from_map(self.trunk(images), image_mask)

    def load_weights(self, state: Mapping[str, Tensor]) -> ConvTower:
        """Take the weights of another tower; one of volumes takes those of films too, inflated."""
        super().load_weights(inflate(state, like=self.state_dict()) if self.axes == 3 else state)
        return self


def from_map(features: Float[Tensor, "batch width *grid"], image_mask: Tensor) -> ImageFeatures:
    """Return a feature map of any number of axes as regions, and their masked mean as the pooled vector."""
    grid = tuple(int(side) for side in features.shape[2:])
    regions = features.flatten(2).transpose(1, 2)
    mask = cover(image_mask, grid)
    return ImageFeatures(
        pooled=masked_mean(regions, mask), regions=regions, region_grid=grid, region_mask=mask
    )


def masked_mean(
    regions: Float[Tensor, "batch regions width"], mask: Bool[Tensor, "batch regions"]
) -> Float[Tensor, "batch width"]:
    """Return the mean of the regions under the mask; zero where it is empty."""
    weights = mask.to(regions.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("brw,br->bw", regions, weights)


_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}


def cover(
    image_mask: Bool[Tensor, " batch *spatial"], grid: tuple[int, ...]
) -> Bool[Tensor, "batch regions"]:
    """Return which cells of ``grid`` see at least one pixel of the film, or voxel of the volume.

    Examples:
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, 3, 3] = True
        >>> cover(mask, (2, 2)).tolist()
        [[False, False, False, True]]
        >>> cover(mask, (3, 1)).tolist()  # a cell of a third is two pixels long, and shares one with the next
        [[False, False, True]]
    """
    sides = tuple(int(side) for side in image_mask.shape[1:])
    pixels = image_mask[:, None].float()
    if all(side % cells == 0 for side, cells in zip(sides, grid, strict=True)):
        strides = tuple(side // cells for side, cells in zip(sides, grid, strict=True))
        return _POOLS[len(sides)](pixels, strides).flatten(1) > 0
    # Adaptive pooling, axis by axis: torch's own has no counterpart in ONNX.
    for axis, (side, cells) in enumerate(zip(sides, grid, strict=True), start=2):
        ends = [(side * i // cells, -(-side * (i + 1) // cells)) for i in range(cells)]
        pixels = torch.stack([pixels.narrow(axis, a, b - a).amax(axis) for a, b in ends], dim=axis)
    return pixels.flatten(1) > 0


def part_cover(
    voxel_parts: UInt8[Tensor, " batch *spatial"],
    grid: tuple[int, ...],
    *,
    parts: int,
    whole: bool = False,
) -> Bool[Tensor, "batch regions parts"]:
    """Return which cells of ``grid`` hold at least one voxel of each part: the ``region_parts`` of features.

    Args:
        voxel_parts: number of the part of each voxel, from 1; 0 for none.
        grid: of the regions.
        parts: how many there are; column k − 1 is part k.
        whole: count a part that touches a border of the tensor nowhere: the crop may have cut it. Large parts
            of a tight crop, the bones first, then hardly ever count.

    Examples:
        >>> numbers = torch.tensor([[[1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 2, 0], [0, 0, 0, 0]]])
        >>> part_cover(numbers.to(torch.uint8), (2, 2), parts=2).int()[0].T.tolist()
        [[1, 0, 0, 0], [0, 1, 0, 1]]
        >>> part_cover(numbers.to(torch.uint8), (2, 2), parts=2, whole=True).int()[0].T.tolist()
        [[0, 0, 0, 0], [0, 1, 0, 1]]

    Source: Shui et al. 2025 (fVLM), arXiv 2501.14548: the mask, pooled by its maximum at the stride of the
    tokens, above 0.
    """
    covered = torch.stack([cover(voxel_parts == part, grid) for part in range(1, parts + 1)], dim=-1)
    if not whole:
        return covered
    numbers = torch.arange(1, parts + 1, device=voxel_parts.device)
    cut = torch.zeros(len(voxel_parts), parts, dtype=torch.bool, device=voxel_parts.device)
    for axis in range(1, voxel_parts.ndim):
        for border in (0, -1):
            face = voxel_parts.select(axis, border).flatten(1)
            cut |= (face[..., None] == numbers).any(dim=1)
    return covered & ~cut[:, None]
