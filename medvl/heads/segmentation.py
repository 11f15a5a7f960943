"""Segmentation: from the regions of an image encoder to the anatomical part of every voxel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16, UInt8
from monai.losses import DiceCELoss
from monai.networks.blocks import UnetResBlock
from torch import Tensor, nn

from medvl.encoders.regions import ImageTower
from medvl.errors import UsageError
from medvl.features import ImageFeatures
from medvl.specs import VolumeInput

__all__ = ["PartDecoder", "Segmenter", "dice", "part_loss", "segment"]


class PartDecoder(nn.Module):
    """Region maps to scores of each pixel or voxel: enlarged twofold until they are as fine as the image.

    At each size the enlarged map stands beside the image itself, averaged to that size, and a residual block
    of MONAI's (two convolutions under instance norms) reads both; so it is light, serves every encoder, and
    the image gives the borders that regions are too coarse for.

    Args:
        axes: 2 or 3.
        region_width: of the encoder.
        channels: of the image.
        classes: scores of each voxel.
        levels: how often the map is enlarged; log₂ of the largest stride of the regions, rounded up.
        width: at the finest size; doubled at each coarser one, up to ``region_width``.

    Examples:
        >>> decoder = PartDecoder(axes=3, region_width=16, channels=2, classes=4, levels=2, width=8)
        >>> decoder(torch.zeros(1, 2, 8, 8, 4), torch.zeros(1, 8, 16), grid=(2, 2, 2)).shape
        torch.Size([1, 4, 8, 8, 4])

    Source: the decoder of UNETR (Hatamizadeh et al. 2022, arXiv 2103.10504), with one skip, the image.
    """

    def __init__(
        self, *, axes: int, region_width: int, channels: int, classes: int, levels: int, width: int = 16
    ) -> None:
        super().__init__()
        self.levels = levels
        widths = [min(region_width, width << (levels - level)) for level in range(levels + 1)]
        convolution = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.mode = ("bilinear", "trilinear")[axes - 2]
        self.average: Callable[[Tensor, Any], Tensor] = (F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
            axes - 2
        ]
        self.enter = convolution(region_width, widths[0], 1)
        self.steps = nn.ModuleList(
            UnetResBlock(axes, before + channels, after, 3, 1, "instance")
            for before, after in itertools.pairwise(widths)
        )
        self.leave = convolution(widths[-1], classes, 1)

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        regions: Float[Tensor, "batch regions width"],
        *,
        grid: tuple[int, ...],
    ) -> Float[Tensor, "batch classes *spatial"]:
        """Return the scores of every voxel."""
        features = self.enter(regions.transpose(1, 2).unflatten(2, grid))
        sides = tuple(int(side) for side in images.shape[2:])
        for level, step in enumerate(self.steps, start=1):
            finer = tuple(min(side, cells << level) for side, cells in zip(sides, grid, strict=True))
            size = sides if level == self.levels else finer
            features = F.interpolate(features, size, mode=self.mode, align_corners=False)
            features = step(torch.cat([features, self.average(images, size)], dim=1))
        return self.leave(features)


class Segmenter(nn.Module):
    """An image encoder with a decoder of parts; class 0 is none of them.

    Args:
        encoder: any image tower, under any training policy.
        parts: their names; class k is part k from 1.
        size_px: of the images that it is made for.
        width: see :class:`PartDecoder`.
    """

    def __init__(
        self, encoder: ImageTower, *, parts: Sequence[str], size_px: Sequence[int], width: int = 16
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.parts, self.width = tuple(parts), width
        grid = region_grid(encoder, size_px)
        stride = max(side / cells for side, cells in zip(size_px, grid, strict=True))
        self.head = PartDecoder(
            axes=encoder.axes,
            region_width=encoder.region_width,
            channels=encoder.channels,
            classes=len(self.parts) + 1,
            levels=max(1, math.ceil(math.log2(stride))),
            width=width,
        )

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> Float[Tensor, "batch classes *spatial"]:
        """Return the scores of every voxel."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder.policy != "frozen"):
            found: ImageFeatures = self.encoder(images, image_mask)
        return self.head(images, found.regions, grid=found.region_grid)


@torch.no_grad()
def region_grid(encoder: ImageTower, size_px: Sequence[int]) -> tuple[int, ...]:
    """Return the regions along each axis that an encoder has for images of a size."""
    training, device = encoder.training, next(encoder.parameters()).device
    images = torch.zeros(1, encoder.channels, *size_px, device=device)
    grid: tuple[int, ...] = encoder.eval()(images, images[:, 0] == 0).region_grid
    encoder.train(training)
    return grid


def part_loss(
    scores: Float[Tensor, "batch classes *spatial"], voxel_parts: UInt8[Tensor, " batch *spatial"]
) -> Float[Tensor, ""]:
    """Return Dice loss plus cross-entropy, MONAI's, with the Dice of each class over the whole batch.

    Over the batch, because a crop may hold a part in none of its voxels, and its Dice would then be noise.
    """
    loss: Tensor = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(
        scores.float(), voxel_parts[:, None].long()
    )
    return loss


def dice(
    found: UInt8[np.ndarray, "*spatial"], truth: UInt8[np.ndarray, "*spatial"], *, parts: int
) -> Float[np.ndarray, " parts"]:
    """Return ``2|A ∩ B| / (|A| + |B|)`` of each part from 1, NaN where neither has a voxel of it.

    Examples:
        >>> dice(np.array([1, 1, 2], np.uint8), np.array([1, 2, 2], np.uint8), parts=3).round(3).tolist()
        [0.667, 0.667, nan]
    """
    a, b, both = (
        np.bincount(numbers.ravel(), minlength=parts + 1)[1 : parts + 1]
        for numbers in (found, truth, np.where(found == truth, found, 0))
    )
    return np.where(a + b > 0, 2 * both / np.maximum(a + b, 1), np.nan)


@torch.inference_mode()
def segment(
    segmenter: Segmenter,
    stored: Int16[np.ndarray, "x y z"],
    *,
    input: VolumeInput,
    overlap: float = 0.25,
) -> UInt8[np.ndarray, "x y z"]:
    """Return the part of every voxel of a stored volume of any size, 0 for none.

    A volume that is larger than the tensor of a cropping input is read in overlapping crops, and a voxel
    takes its part from the crop in which it lies farthest from a border, where the encoder saw most around
    it. With a resizing input it takes that of the tensor's voxel at its place.

    Args:
        segmenter: in eval mode.
        stored: in HU, as the store keeps it.
        input: how stored volumes become tensors.
        overlap: least share of a crop that the next one shows again.

    Raises:
        UsageError: the encoder reads films.
    """
    if segmenter.encoder.axes != 3:
        raise UsageError(
            f"encoder '{segmenter.encoder.name}' reads films; only volumes have parts of voxels.",
            hint="Give a model that was trained on volumes.",
        )
    device: Any = next(segmenter.parameters()).device
    found = np.zeros(stored.shape, np.uint8)
    depth = np.full(stored.shape, -1, np.int32)
    for start in input.tiles(stored.shape, overlap=overlap):
        tensor, mask = input.apply(stored, start=start)
        scores = segmenter(torch.from_numpy(tensor)[None].to(device), torch.from_numpy(mask)[None].to(device))
        numbers = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
        first, last = input.span(stored.shape, start=start)
        scale, offset = input.frame(stored.shape, start=start)
        places, inward = [], []
        for axis, size in enumerate(input.size_px):
            places.append(
                np.floor((np.arange(first[axis], last[axis]) + 0.5) * scale[axis] + offset[axis]).astype(int)
            )
            inward.append(np.minimum(places[-1], size - 1 - places[-1]).astype(np.int32))
        x, y, z = inward
        inside = np.minimum(np.minimum(x[:, None, None], y[None, :, None]), z[None, None])
        crop = tuple(map(slice, first, last))
        better = inside > depth[crop]
        found[crop] = np.where(better, numbers[np.ix_(*places)], found[crop])
        depth[crop] = np.maximum(depth[crop], inside)
    return found
