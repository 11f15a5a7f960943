"""What image encoders share: the catalogue, the feature map as regions, and which regions see film."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.catalogue import Catalogue
from medvl.encoders.tower import Tower
from medvl.errors import ConfigError
from medvl.features import ImageFeatures

__all__ = ["IMAGE_ENCODERS", "ConvTower", "ImageTower", "cover", "from_map", "masked_mean"]

IMAGE_ENCODERS: Catalogue[ImageTower] = Catalogue("image encoder")


class ImageTower(Tower):
    """The base of the image encoders: :class:`medvl.features.ImageEncoder` with a training policy."""

    width: int
    region_width: int
    channels: int

    def _check(self, images: Tensor) -> None:
        if images.shape[1] != self.channels:
            raise ConfigError(
                f"the images have {images.shape[1]} channels; encoder '{self.name}' takes {self.channels}.",
                hint="Set 'channels' of the encoder and of the input spec to the same number.",
            )


class ConvTower(ImageTower):
    """A convolutional trunk whose last feature map is the regions and whose mean is the pooled vector.

    ``pooled = Σ_k m_k r_k / Σ_k m_k`` over the regions r_k that see film (mask m_k), so the black bars of a
    letterboxed film never dilute it. With one linear projection for both, the score of an image
    is therefore the mean of the scores of its regions (class activation maps, Zhou et al. 2016).
    """

    def __init__(
        self, trunk: nn.Module, *, width: int, channels: int, name: str, architecture: Mapping[str, Any]
    ) -> None:
        super().__init__(name=name, architecture=architecture)
        self.trunk = trunk
        self.width = self.region_width = width
        self.channels = channels

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_mask: Bool[Tensor, "batch height width"],
    ) -> ImageFeatures:
        """Return the masked mean of the last feature map, and the map itself as regions."""
        self._check(images)
        return from_map(self.trunk(images), image_mask)


def from_map(features: Float[Tensor, "batch width rows columns"], image_mask: Tensor) -> ImageFeatures:
    """Return a feature map as regions, and their masked mean as the pooled vector."""
    grid = (int(features.shape[-2]), int(features.shape[-1]))
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


def cover(
    image_mask: Bool[Tensor, "batch height width"], grid: tuple[int, int]
) -> Bool[Tensor, "batch regions"]:
    """Return which cells of ``grid`` see at least one pixel of the film.

    Examples:
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, 3, 3] = True
        >>> cover(mask, (2, 2)).tolist()
        [[False, False, False, True]]
    """
    height, width = image_mask.shape[-2:]
    pixels = image_mask[:, None].float()
    if height % grid[0] == 0 and width % grid[1] == 0:  # the plain form exports to ONNX
        cells = F.max_pool2d(pixels, (height // grid[0], width // grid[1]))
    else:
        cells = F.adaptive_max_pool2d(pixels, grid)
    return cells.flatten(1) > 0
