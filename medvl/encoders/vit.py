"""The vision transformer, built from MONAI's; its attention says where the pooled vector looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.networks.nets import ViT
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from medvl.encoders.regions import IMAGE_ENCODERS, ImageTower, cover, masked_mean
from medvl.errors import ConfigError
from medvl.features import ImageFeatures

__all__ = ["VitTower", "vit"]


class VitTower(ImageTower):
    """MONAI's vision transformer for films and volumes; its patches are the regions.

    ``region_weights`` is the attention of [CLS] to the patches in the last block, mean over heads, over the
    patches that see film, scaled to sum 1 and detached; with mean pooling there is none.
    """

    def __init__(
        self,
        net: ViT,
        *,
        patch_px: tuple[int, ...],
        pooling: str,
        channels: int,
        architecture: Mapping[str, Any],
        region_layers: Sequence[int] = (),
    ) -> None:
        super().__init__(name="vit", architecture=architecture)
        self.net = net
        self.patch_px = patch_px
        self.axes = len(patch_px)
        self.pooling = pooling
        self.channels = channels
        self.width = int(net.norm.normalized_shape[0])
        self.region_layers = tuple(region_layers) or (len(net.blocks),)
        self.region_width = self.width * len(self.region_layers)
        self.grid = _grid(architecture["size_px"], patch_px)

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
        *,
        hidden: Bool[Tensor, "batch patches"] | None = None,
        token: Float[Tensor, " dim"] | None = None,
    ) -> ImageFeatures:
        """Return [CLS] or the mean of the patches as pooled vector, and the patches as regions.

        ``token`` takes the place of ``hidden`` patches, before their positions are added.
        """
        self._check(images)
        sides = tuple(int(side) for side in images.shape[2:])
        if any(side % patch for side, patch in zip(sides, self.patch_px, strict=True)):
            raise ConfigError(
                f"the images have {_times(sides)} {'pixels' if self.axes == 2 else 'voxels'}; allowed are "
                f"multiples of {_times(sorted(set(self.patch_px)) if self._cubic else self.patch_px)}.",
                hint="Change size_px of the input spec.",
            )
        grid = _grid(sides, self.patch_px)
        embedding = self.net.patch_embedding
        tokens = embedding.patch_embeddings(images).flatten(2).transpose(1, 2)
        if hidden is not None and token is not None:
            tokens = torch.where(hidden[..., None], token.to(tokens.dtype), tokens)
        tokens = tokens + self._positions(grid)
        tokens = torch.cat([self.net.cls_token.expand(tokens.shape[0], -1, -1), embedding.dropout(tokens)], 1)
        layers: list[Tensor] = []
        for number, block in enumerate(self.net.blocks, start=1):
            entering, tokens = tokens, block(tokens)
            if number in self.region_layers:
                layers.append(self.net.norm(tokens))
        # The last layer is one of the regions' as a rule; its norm is computed once then.
        tokens = layers[-1] if number in self.region_layers else self.net.norm(tokens)
        regions = (
            torch.cat([layer[:, 1:] for layer in layers], dim=2) if len(layers) > 1 else layers[0][:, 1:]
        )
        mask = cover(image_mask, grid)
        if self.pooling == "mean":
            return ImageFeatures(masked_mean(tokens[:, 1:], mask), regions, grid, mask)
        return ImageFeatures(tokens[:, 0], regions, grid, mask, self._attention(entering, mask))

    @property
    def _cubic(self) -> bool:
        return len(set(self.patch_px)) == 1

    def _positions(self, grid: tuple[int, ...]) -> Float[Tensor, "1 patches width"]:
        """Return the learned positions, resampled where the grid is not the one that they were made for."""
        positions = self.net.patch_embedding.position_embeddings
        if grid == self.grid:
            return positions
        picture = positions.transpose(1, 2).unflatten(2, self.grid)
        mode = "bicubic" if self.axes == 2 else "trilinear"
        return F.interpolate(picture, grid, mode=mode, align_corners=False).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _attention(
        self, tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches"]:
        """Compute [CLS]'s row of the last attention again; the block stays fused and keeps no matrix."""
        block: Any = self.net.blocks[-1]
        query, key, _ = (
            block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, block.attn.num_heads, -1)).unbind(2)
        )
        row = torch.einsum("bhd,bthd->bht", query[:, 0], key) * block.attn.scale
        weights = row.float().softmax(2).mean(1)[:, 1:] * mask
        return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _grid(sides: Sequence[int], patch_px: Sequence[int]) -> tuple[int, ...]:
    return tuple(side // patch for side, patch in zip(sides, patch_px, strict=True))


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(str(number) for number in numbers)


@IMAGE_ENCODERS.add("vit")
@validate_call
def vit(
    *,
    channels: PositiveInt = 1,
    size_px: Sequence[PositiveInt] = (224, 224),
    patch_px: PositiveInt | Sequence[PositiveInt] = 16,
    width: PositiveInt = 768,
    hidden: PositiveInt = 3072,
    layers: PositiveInt = 12,
    heads: PositiveInt = 12,
    dropout: float = 0.0,
    pooling: Literal["cls", "mean"] = "cls",
    region_layers: Sequence[PositiveInt] = (),
) -> VitTower:
    """Return a vision transformer (Dosovitskiy et al. 2021), ViT-B/16 by default.

    Args:
        channels: 1 or 3 of a film, one a window of a volume.
        size_px: height and width, or x, y and z, that it is made for; other multiples of the patch get
            interpolated positions.
        patch_px: side of a patch, or one number an axis; the regions have this stride.
        width: of the transformer, a multiple of ``heads``.
        hidden: width of its feed-forward layers.
        layers: transformer blocks.
        heads: attention heads.
        dropout: after embedding, attention and MLP.
        pooling: ``cls`` or ``mean``.
        region_layers: blocks, from 1 and ascending, whose tokens are put side by side as the regions, each
            under the last norm, as fVLM (arXiv 2501.14548) shows its organ queries several layers; none is
            the last block alone. Regions are then as many times wider.

    Raises:
        ConfigError: ``size_px`` is no multiple of ``patch_px``, ``width`` none of ``heads``, or a region
            layer is not there.

    Examples:
        >>> tower = vit(size_px=(32, 32, 16), patch_px=(16, 16, 8), width=24, hidden=48, layers=2, heads=2)
        >>> tower.axes, tower.grid
        (3, (2, 2, 2))
    """
    axes = len(size_px)
    if axes not in (2, 3):
        raise ConfigError(f"size_px is {tuple(size_px)}; allowed are 2 numbers for films, 3 for volumes.")
    patches = (patch_px,) * axes if isinstance(patch_px, int) else tuple(patch_px)
    if len(patches) != axes or any(side % patch for side, patch in zip(size_px, patches, strict=False)):
        shown = patch_px if isinstance(patch_px, int) else patches
        raise ConfigError(f"size_px is {tuple(size_px)}; allowed are multiples of patch_px, {shown}.")
    if width % heads:
        raise ConfigError(f"width is {width}; allowed are multiples of heads, {heads}.")
    if list(region_layers) != sorted(set(region_layers)) or max(region_layers, default=1) > layers:
        raise ConfigError(
            f"region_layers is {list(region_layers)}; allowed are ascending numbers from 1 to {layers}."
        )
    net = ViT(
        channels,
        size_px,
        patches,
        hidden_size=width,
        mlp_dim=hidden,
        num_layers=layers,
        num_heads=heads,
        classification=True,
        dropout_rate=dropout,
        spatial_dims=axes,
        qkv_bias=True,
    )
    del net.classification_head
    nn.init.trunc_normal_(net.cls_token, std=0.02)
    blocks: Any = net.blocks
    for block in blocks:
        # MONAI's fused attention drops out in eval mode too, so it is only for nets without dropout.
        block.attn.use_flash_attention = dropout == 0
        del block.norm_cross_attn  # never used, and a parameter without a gradient stops distributed training
    options: dict[str, Any] = {
        "channels": channels,
        "size_px": list(size_px),
        "patch_px": patch_px if isinstance(patch_px, int) else list(patches),
        "width": width,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "dropout": dropout,
        "pooling": pooling,
        "region_layers": list(region_layers),
    }
    return VitTower(
        net,
        patch_px=patches,
        pooling=pooling,
        channels=channels,
        architecture=options,
        region_layers=region_layers,
    )
