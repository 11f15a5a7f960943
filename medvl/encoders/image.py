"""Image encoders by name: pixels or voxels to one pooled vector and a grid of region vectors.

Every encoder here treats the rows of a batch alone when it is in eval mode. In training mode those with
batch normalisation (``norm="batch"``) mix rows through the batch statistics; ``norm="group"`` never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Imported for their entries in the catalogue.
import medvl.encoders.convolutional
import medvl.encoders.slices
import medvl.encoders.swin
import medvl.encoders.vit  # noqa: F401
from medvl.encoders.efficientnet import IMAGENET_MEAN, IMAGENET_STD
from medvl.encoders.regions import IMAGE_ENCODERS, ImageTower
from medvl.encoders.tower import build_tower

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_ENCODERS",
    "ImageTower",
    "build_image_encoder",
    "rebuild_image_encoder",
]


def build_image_encoder(name: str, options: Mapping[str, Any]) -> ImageTower:
    """Build an image encoder by its catalogue name.

    Raises:
        ConfigError: an unknown name or option, or a value that does not fit.

    Examples:
        >>> build_image_encoder("resnet", {"widths": [8, 16], "blocks": [1, 1]}).width
        16
    """
    return build_tower(IMAGE_ENCODERS, name, options)


def rebuild_image_encoder(name: str, architecture: Mapping[str, Any]) -> ImageTower:
    """Build the module that ``encoder.architecture`` describes, with random weights and no download."""
    return build_image_encoder(name, architecture)
