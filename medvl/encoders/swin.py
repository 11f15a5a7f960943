"""The Swin transformer of volumes and films, built from MONAI's: attention inside shifted windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from monai.networks.nets.swin_unetr import SwinTransformer
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from medvl.encoders.regions import IMAGE_ENCODERS, ConvTower
from medvl.errors import ConfigError

__all__ = ["swin"]


class _SwinTrunk(nn.Module):
    """MONAI's Swin transformer as one map: patches, its stages, and a norm over the channels."""

    def __init__(self, net: Any, *, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(net.patch_embed, net.pos_drop)
        stages = (net.layers1, net.layers2, net.layers3, net.layers4)
        self.stages = nn.Sequential(*[stage[0] for stage in stages[: net.num_layers]])
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        features = self.embed(images)
        for stage in self.stages:
            features = stage(features.contiguous())
        return self.norm(features.movedim(1, -1)).movedim(-1, 1)


@IMAGE_ENCODERS.add("swin")
@validate_call
def swin(
    *,
    axes: Literal[2, 3] = 3,
    channels: PositiveInt = 1,
    patch_px: PositiveInt = 2,
    width: PositiveInt = 48,
    blocks: Sequence[PositiveInt] = (2, 2, 2, 2),
    heads: Sequence[PositiveInt] = (3, 6, 12, 24),
    window: PositiveInt = 4,
    dropout: float = 0.0,
) -> ConvTower:
    """Return a Swin transformer (Liu et al. 2021, arXiv 2103.14030), by default SwinUNETR's encoder.

    Each stage ends by merging 2 neighbours along each axis into one, so the regions, its last map, have a
    stride of ``patch_px · 2**len(blocks)``: 32 by default, 16 with three stages. Without positions of its own
    it takes any size. Where a map is smaller than the window, MONAI shrinks the window and reads the relative
    positions from another corner of its table: learned all the same, but not shared with larger maps.

    Args:
        axes: 2 for films, 3 for volumes.
        channels: of the images.
        patch_px: side of a patch.
        width: of a patch; it doubles with each stage.
        blocks: transformer blocks of each stage, 1 to 4 stages.
        heads: attention heads of each stage; divisors of its width.
        window: side of the windows inside which patches attend to each other.
        dropout: after attention and MLP.

    Raises:
        ConfigError: the stages do not fit each other.

    Examples:
        >>> swin(width=12, blocks=(1, 1), heads=(2, 4)).width
        48
    """
    if not 1 <= len(blocks) <= 4 or len(heads) != len(blocks):
        raise ConfigError(
            f"image encoder 'swin' has {len(blocks)} block counts and {len(heads)} head counts.",
            hint="Give the same number of both, 1 to 4.",
        )
    for stage, count in enumerate(heads):
        if (width << stage) % count:
            raise ConfigError(
                f"heads of stage {stage + 1} is {count}; allowed are divisors of {width << stage}."
            )
    net = SwinTransformer(
        in_chans=channels,
        embed_dim=width,
        window_size=(window,) * axes,
        patch_size=(patch_px,) * axes,
        depths=tuple(blocks),
        num_heads=tuple(heads),
        drop_rate=dropout,
        attn_drop_rate=dropout,
        spatial_dims=axes,
        # Not MONAI's default "merging", which takes some neighbours twice and others never.
        downsample="mergingv2",
        use_flash_attention=True,  # MONAI fuses it where no gradient is asked for
    )
    last = width << len(blocks)
    options: dict[str, Any] = {
        "axes": axes,
        "channels": channels,
        "patch_px": patch_px,
        "width": width,
        "blocks": list(blocks),
        "heads": list(heads),
        "window": window,
        "dropout": dropout,
    }
    trunk = _SwinTrunk(net, width=last)
    return ConvTower(trunk, width=last, channels=channels, name="swin", architecture=options, axes=axes)
