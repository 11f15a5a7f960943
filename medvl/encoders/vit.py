"""The vision transformer, built from MONAI's; its attention says where the pooled vector looked."""

from __future__ import annotations

from collections.abc import Mapping
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
    """MONAI's 2D vision transformer; its patches are the regions.

    ``region_weights`` is the attention of [CLS] to the patches in the last block, mean over heads, over the
    patches that see film, scaled to sum 1 and detached; with mean pooling there is none.
    """

    def __init__(
        self, net: ViT, *, patch_px: int, pooling: str, channels: int, architecture: Mapping[str, Any]
    ) -> None:
        super().__init__(name="vit", architecture=architecture)
        self.net = net
        self.patch_px = patch_px
        self.pooling = pooling
        self.channels = channels
        self.width = self.region_width = int(net.norm.normalized_shape[0])
        self.grid = tuple(side // patch_px for side in architecture["size_px"])

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_mask: Bool[Tensor, "batch height width"],
        *,
        hidden: Bool[Tensor, "batch patches"] | None = None,
        token: Float[Tensor, " dim"] | None = None,
    ) -> ImageFeatures:
        """Return [CLS] or the mean of the patches as pooled vector, and the patches as regions.

        ``token`` takes the place of ``hidden`` patches, before their positions are added.
        """
        self._check(images)
        height, width = (int(side) for side in images.shape[-2:])
        if height % self.patch_px or width % self.patch_px:
            raise ConfigError(
                f"the images have {height} x {width} pixels; allowed are multiples of {self.patch_px}.",
                hint="Change size_px of the input spec.",
            )
        grid = (height // self.patch_px, width // self.patch_px)
        embedding = self.net.patch_embedding
        tokens = embedding.patch_embeddings(images).flatten(2).transpose(1, 2)
        if hidden is not None and token is not None:
            tokens = torch.where(hidden[..., None], token.to(tokens.dtype), tokens)
        tokens = tokens + self._positions(grid)
        tokens = torch.cat([self.net.cls_token.expand(tokens.shape[0], -1, -1), embedding.dropout(tokens)], 1)
        for block in self.net.blocks:
            entering, tokens = tokens, block(tokens)
        tokens = self.net.norm(tokens)
        regions, mask = tokens[:, 1:], cover(image_mask, grid)
        if self.pooling == "mean":
            return ImageFeatures(masked_mean(regions, mask), regions, grid, mask)
        return ImageFeatures(tokens[:, 0], regions, grid, mask, self._attention(entering, mask))

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 patches width"]:
        positions = self.net.patch_embedding.position_embeddings
        if grid == self.grid:
            return positions
        picture = positions.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(picture, grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)

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


@IMAGE_ENCODERS.add("vit")
@validate_call
def vit(
    *,
    channels: Literal[1, 3] = 1,
    size_px: tuple[PositiveInt, PositiveInt] = (224, 224),
    patch_px: PositiveInt = 16,
    width: PositiveInt = 768,
    hidden: PositiveInt = 3072,
    layers: PositiveInt = 12,
    heads: PositiveInt = 12,
    dropout: float = 0.0,
    pooling: Literal["cls", "mean"] = "cls",
) -> VitTower:
    """Return a vision transformer (Dosovitskiy et al. 2021), ViT-B/16 by default.

    Args:
        channels: 1 or 3.
        size_px: height and width it is made for; other multiples of the patch get interpolated positions.
        patch_px: side of a patch; the regions have this stride.
        width: of the transformer, a multiple of ``heads``.
        hidden: width of its feed-forward layers.
        layers: transformer blocks.
        heads: attention heads.
        dropout: after embedding, attention and MLP.
        pooling: ``cls`` or ``mean``.

    Raises:
        ConfigError: ``size_px`` is no multiple of ``patch_px``, or ``width`` none of ``heads``.
    """
    if any(side % patch_px for side in size_px):
        raise ConfigError(f"size_px is {tuple(size_px)}; allowed are multiples of patch_px, {patch_px}.")
    if width % heads:
        raise ConfigError(f"width is {width}; allowed are multiples of heads, {heads}.")
    net = ViT(
        channels,
        size_px,
        patch_px,
        hidden_size=width,
        mlp_dim=hidden,
        num_layers=layers,
        num_heads=heads,
        classification=True,
        dropout_rate=dropout,
        spatial_dims=2,
        qkv_bias=True,
    )
    del net.classification_head
    nn.init.trunc_normal_(net.cls_token, std=0.02)
    blocks: Any = net.blocks
    for block in blocks:
        # MONAI's fused attention drops out in eval mode too, so it is only for nets without dropout.
        block.attn.use_flash_attention = dropout == 0
        del block.norm_cross_attn  # never used, and a parameter without a gradient stops distributed training
    options = {
        "channels": channels,
        "size_px": list(size_px),
        "patch_px": patch_px,
        "width": width,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "dropout": dropout,
        "pooling": pooling,
    }
    return VitTower(net, patch_px=patch_px, pooling=pooling, channels=channels, architecture=options)
