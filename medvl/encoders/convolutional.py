"""Residual and dense convolutional encoders of films and volumes, built from MONAI's networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from monai.networks.nets import DenseNet, ResNet
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from medvl.encoders.regions import IMAGE_ENCODERS, ConvTower, check_least
from medvl.errors import ConfigError

__all__ = ["densenet121", "resnet", "resnet18", "resnet50"]

Axes = Literal[2, 3]
Norm = Literal["batch", "group"]


class _ResNetTrunk(nn.Module):
    """MONAI's ResNet without its head, and without the stages that the options leave out."""

    def __init__(self, net: ResNet, *, stages: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act)
        if not net.no_max_pool:
            self.stem.append(net.maxpool)
        self.stages = nn.Sequential(*[net.get_submodule(f"layer{i + 1}") for i in range(stages)])

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))


def _group_norm(module: nn.Module) -> None:
    """Put group normalisation in the place of every batch normalisation."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
            groups = math.gcd(32, child.num_features)
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _group_norm(child)


def _resnet(
    name: str,
    architecture: Mapping[str, Any],
    *,
    channels: int,
    block: str,
    widths: Sequence[int],
    blocks: Sequence[int],
    stem_px: int | Sequence[int],
    stem_stride: int | Sequence[int],
    max_pool: bool,
    norm: Norm,
    axes: Axes = 2,
) -> ConvTower:
    stages = len(widths)
    if not 1 <= stages <= 4 or len(blocks) != stages:
        raise ConfigError(
            f"image encoder '{name}' has {stages} widths and {len(blocks)} block counts.",
            hint="Give the same number of both, 1 to 4.",
        )
    for option, value in (("stem_px", stem_px), ("stem_stride", stem_stride)):
        if not isinstance(value, int) and len(value) != axes:
            raise ConfigError(
                f"image encoder '{name}': {option} is {list(value)}; allowed are one number or {axes}.",
                hint="A film has 2 axes, a volume 3.",
            )
    unused = [1] * (4 - stages)  # MONAI builds four stages; those that are not wanted are one channel wide
    net = ResNet(
        block,
        [*blocks, *unused],
        [*widths, *unused],
        spatial_dims=axes,
        n_input_channels=channels,
        conv1_t_size=stem_px,  # type: ignore[arg-type]
        conv1_t_stride=stem_stride,  # type: ignore[arg-type]
        no_max_pool=not max_pool,
        # Not MONAI's default "A" of resnet18: it reads `.data` and so cuts the gradient of the shortcut.
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    trunk = _ResNetTrunk(net, stages=stages)
    if norm == "group":
        _group_norm(trunk)
    width = widths[-1] * (4 if block == "bottleneck" else 1)
    return ConvTower(trunk, width=width, channels=channels, name=name, architecture=architecture, axes=axes)


@IMAGE_ENCODERS.add("resnet")
@validate_call
def resnet(
    *,
    axes: Axes = 2,
    channels: PositiveInt = 1,
    widths: Sequence[PositiveInt] = (32, 64, 128),
    blocks: Sequence[PositiveInt] = (2, 2, 2),
    stem_px: PositiveInt | Sequence[PositiveInt] = 7,
    stem_stride: PositiveInt | Sequence[PositiveInt] = 2,
    norm: Norm = "batch",
) -> ConvTower:
    """Return a compact residual network of basic blocks, for small images and small machines.

    The first stage keeps the resolution of the stem, each further one halves it, so the regions have
    a stride of ``stem_stride · 2**(len(widths) - 1)``: 8 pixels by default, an 8×8 grid for 64-pixel
    images, with 0.70 M parameters (2.1 M with three axes).

    ``axes`` is 2 for films and 3 for volumes; a recipe takes it from its input spec. ``stem_px`` and
    ``stem_stride`` are one number or one an axis: voxels that are twice as long along z go well with a stride
    of ``(2, 2, 1)``.
    """
    options: dict[str, Any] = {
        "axes": axes,
        "channels": channels,
        "widths": list(widths),
        "blocks": list(blocks),
        "stem_px": stem_px if isinstance(stem_px, int) else list(stem_px),
        "stem_stride": stem_stride if isinstance(stem_stride, int) else list(stem_stride),
        "norm": norm,
    }
    return _resnet("resnet", options, **options, block="basic", max_pool=False)


@IMAGE_ENCODERS.add("resnet18")
@validate_call
def resnet18(*, axes: Axes = 2, channels: PositiveInt = 1, norm: Norm = "batch") -> ConvTower:
    """Return ResNet-18 (He et al. 2016): width 512, regions at a stride of 32 pixels."""
    return _deep_resnet(
        "resnet18", axes=axes, channels=channels, norm=norm, block="basic", blocks=(2, 2, 2, 2)
    )


@IMAGE_ENCODERS.add("resnet50")
@validate_call
def resnet50(*, axes: Axes = 2, channels: PositiveInt = 1, norm: Norm = "batch") -> ConvTower:
    """Return ResNet-50 (He et al. 2016): width 2048, regions at a stride of 32 pixels."""
    return _deep_resnet(
        "resnet50", axes=axes, channels=channels, norm=norm, block="bottleneck", blocks=(3, 4, 6, 3)
    )


def _deep_resnet(
    name: str, *, axes: Axes, channels: int, norm: Norm, block: str, blocks: Sequence[int]
) -> ConvTower:
    return _resnet(
        name,
        {"axes": axes, "channels": channels, "norm": norm},
        axes=axes,
        channels=channels,
        block=block,
        widths=(64, 128, 256, 512),
        blocks=blocks,
        stem_px=7,
        stem_stride=2,
        max_pool=True,
        norm=norm,
    )


@IMAGE_ENCODERS.add("densenet121")
@validate_call
def densenet121(
    *,
    axes: Axes = 2,
    channels: PositiveInt = 1,
    init_features: PositiveInt = 64,
    growth_rate: PositiveInt = 32,
    blocks: Sequence[PositiveInt] = (6, 12, 24, 16),
    norm: Norm = "batch",
    size_px: Sequence[PositiveInt] | None = None,
) -> ConvTower:
    """Return a DenseNet (Huang et al. 2017), DenseNet-121 unless the options say otherwise.

    DenseNet-169 is ``blocks=(6, 12, 32, 32)``, -201 ``(6, 12, 48, 32)``, -264 ``(6, 12, 64, 48)``.
    The regions have a stride of 32 pixels with four blocks, half of that with each block less.

    The stem divides a side by four and rounds up, each block but the last halves it and rounds down, so with
    b blocks the shortest side that leaves a region is :math:`2^{b+1} - 3`: 29 pixels with four blocks.

    Args:
        axes: 2 for films and 3 for volumes; a recipe takes it from its input spec.
        channels: of the images.
        init_features: channels of the stem.
        growth_rate: channels that a layer adds.
        blocks: layers of each block.
        norm: of the channels.
        size_px: of the images, if known, so that too small ones are refused here.

    Raises:
        ConfigError: a side of ``size_px`` is too short.
    """
    least_px = 2 ** (len(blocks) + 1) - 3
    if size_px is not None:
        check_least("densenet121", size_px, least_px=least_px)
    net = DenseNet(
        spatial_dims=axes,
        in_channels=channels,
        out_channels=1,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=tuple(blocks),
    )
    if norm == "group":
        _group_norm(net.features)
    width = init_features
    for i, layers in enumerate(blocks):
        width += layers * growth_rate
        width = width // 2 if i + 1 < len(blocks) else width  # a transition halves it
    options = {
        "axes": axes,
        "channels": channels,
        "init_features": init_features,
        "growth_rate": growth_rate,
        "blocks": list(blocks),
        "norm": norm,
    }
    trunk = nn.Sequential(net.features, nn.ReLU())
    return ConvTower(
        trunk,
        width=width,
        channels=channels,
        name="densenet121",
        architecture=options,
        axes=axes,
        least_px=least_px,
    )
