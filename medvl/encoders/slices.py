"""A 2D encoder for volumes: each axial slice by itself, then attention over the slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from medvl.encoders.inflate import inflate
from medvl.encoders.regions import IMAGE_ENCODERS, ImageTower
from medvl.errors import ConfigError
from medvl.features import ImageFeatures

__all__ = ["SliceAttention", "SliceTower", "slices"]


class SliceAttention(nn.Module):
    """Slices to one vector: each head weighs the slices for its share of the axes by a learned query.

    ``pooled_h = Σ_z softmax_z(q_h · k_zh / √d_h) v_zh``, ``v = slices``, ``k = LN(slices + positions)``. The
    queries start at zero, so that training, or a frozen encoder, starts from the mean of the slices.

    Args:
        width: of a slice's vector.
        heads: a divisor of ``width``.
        slices: how many the positions are made for; another number gets interpolated ones.
    """

    def __init__(self, width: int, *, heads: int, slices: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(heads, width // heads))
        self.positions = nn.Parameter(torch.empty(1, width, slices))
        self.before = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(
        self, slices: Float[Tensor, "batch slices width"], seen: Bool[Tensor, "batch slices"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch slices"]]:
        """Return the pooled vectors and the mean of the heads' weights; unseen slices have none."""
        positions: Tensor = self.positions
        if positions.shape[2] != slices.shape[1]:
            positions = F.interpolate(positions, slices.shape[1], mode="linear", align_corners=False)
        keys = self.before(slices + positions.transpose(1, 2)).unflatten(2, (self.heads, -1))
        scores = torch.einsum("bzhd,hd->bhz", keys, self.query) * self.query.shape[1] ** -0.5
        counted = seen | ~seen.any(dim=1, keepdim=True)
        weights = scores.float().masked_fill(~counted[:, None], -torch.inf).softmax(dim=2)
        values = slices.unflatten(2, (self.heads, -1))
        pooled = torch.einsum("bhz,bzhd->bhd", weights.to(values.dtype), values).flatten(1)
        return pooled, weights.mean(1) * seen


class SliceTower(ImageTower):
    """A 2D encoder on every axial slice; the regions of all slices are those of the volume.

    The encoder sees a slice as radiologists do, the front at the top and the patient's right at the left, so
    weights that were learned on pictures serve. ``region_weights`` is the attention to a slice times that of
    the encoder inside it, or spread evenly over its regions, and detached.
    """

    def __init__(
        self,
        encoder: ImageTower,
        *,
        adjacent: int,
        heads: int,
        slices: int,
        pool_z: int,
        chunk: int,
        architecture: Mapping[str, Any],
    ) -> None:
        super().__init__(name="slices", architecture=architecture)
        self.encoder = encoder
        self.pooler = SliceAttention(encoder.width, heads=heads, slices=slices)
        self.axes = 3
        self.adjacent, self.pool_z, self.chunk = adjacent, pool_z, chunk
        self.channels = encoder.channels // adjacent
        self.width, self.region_width = encoder.width, encoder.region_width

    def forward(
        self,
        images: Float[Tensor, "batch channels x y z"],
        image_mask: Bool[Tensor, "batch x y z"],
    ) -> ImageFeatures:
        """Return the attended mean of the slices, and the regions of all slices on a (gx, gy, gz) grid."""
        self._check(images)
        depth = int(images.shape[4])
        if depth % self.pool_z:
            raise ConfigError(
                f"the images have {depth} slices; allowed are multiples of pool_z, {self.pool_z}.",
                hint="Change size_px of the input spec.",
            )
        found, shape = self._each(images, image_mask), (images.shape[0], depth)
        inside = found.region_mask.unflatten(0, shape)
        pooled, weights = self.pooler(found.pooled.unflatten(0, shape), inside.any(dim=2))
        with torch.no_grad():
            within = found.region_weights
            if within is None:
                cells = found.region_mask.to(weights.dtype)
                within = cells / cells.sum(1, keepdim=True).clamp(min=1)
            attention = self._volume((within.unflatten(0, shape) * weights[..., None])[..., None], found)
            attention = attention.unflatten(3, (-1, self.pool_z)).sum(4).flatten(1)
        regions, mask = (
            self._volume(found.regions.unflatten(0, shape), found),
            self._volume(inside[..., None], found),
        )
        if self.pool_z > 1:
            seen = mask.unflatten(3, (-1, self.pool_z)).to(regions.dtype)
            total = (regions.unflatten(3, (-1, self.pool_z)) * seen).sum(4)
            regions, mask = total / seen.sum(4).clamp(min=1), seen.any(dim=4)
        grid = tuple(int(side) for side in regions.shape[1:4])
        return ImageFeatures(pooled, regions.flatten(1, 3), grid, mask.flatten(1), attention.detach())

    def _each(self, images: Tensor, image_mask: Tensor) -> ImageFeatures:
        """Return the features of all slices of all volumes, as one batch of pictures.

        In training they go through the encoder at once, so that its batch statistics are those of all; in an
        exported graph too, since the number of pieces would be that of the batch it was traced with.
        """
        pictures = images.permute(0, 4, 1, 3, 2).flip(-1, -2)
        masks = image_mask.permute(0, 3, 2, 1).flip(-1, -2).flatten(0, 1)
        if self.adjacent > 1:
            half, last = self.adjacent // 2, pictures.shape[1] - 1
            steps = torch.arange(-half, half + 1, device=images.device)
            near = torch.arange(last + 1, device=images.device)[:, None] + steps
            pictures = pictures[:, near.clamp(0, last)].flatten(2, 3)
        pictures = pictures.flatten(0, 1)
        if self.training or torch.compiler.is_exporting():
            return self.encoder(pictures, masks)
        parts = [
            self.encoder(some, mask)
            for some, mask in zip(pictures.split(self.chunk), masks.split(self.chunk), strict=True)
        ]
        weighted = parts[0].region_weights is not None
        return ImageFeatures(
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.regions for part in parts]),
            parts[0].region_grid,
            torch.cat([part.region_mask for part in parts]),
            torch.cat([part.region_weights for part in parts]) if weighted else None,
        )

    @staticmethod
    def _volume(values: Tensor, found: ImageFeatures) -> Tensor:
        """Turn rows and columns of each slice back into x and y: batch, gx, gy, z, width."""
        return values.unflatten(2, found.region_grid).flip(2, 3).permute(0, 3, 2, 1, 4)

    def set_policy(self, policy: str) -> SliceTower:
        """Set how far this tower trains; the attention is too new to be adapted and trains as a whole."""
        super().set_policy(policy)
        self.pooler.requires_grad_(policy != "frozen")
        return self

    def load_weights(self, state: Mapping[str, Tensor]) -> SliceTower:
        """Take the weights of another such tower, or those of a 2D encoder for the slices."""
        if state.keys() == self.encoder.state_dict().keys():
            self.encoder.load_weights(inflate(state, like=self.encoder.state_dict()))
        else:
            super().load_weights(state)
        return self


@IMAGE_ENCODERS.add("slices")
@validate_call
def slices(
    *,
    encoder: str = "efficientnet_lite0",
    options: Mapping[str, Any] | None = None,
    channels: PositiveInt = 3,
    size_px: Sequence[PositiveInt] = (224, 224, 32),
    adjacent: PositiveInt = 1,
    heads: PositiveInt = 8,
    pool_z: PositiveInt = 1,
    chunk: PositiveInt = 64,
) -> SliceTower:
    """Return a 2D encoder of this catalogue that reads a volume slice by slice.

    So that weights of pictures serve: ``efficientnet_lite0`` with three windows, or with one window and
    ``adjacent=3``, where a slice and its two neighbours are the three channels.

    Args:
        encoder: name of the 2D encoder.
        options: of the 2D encoder; its channels and size come from here.
        channels: of the volume, one a window.
        size_px: voxels along x, y and z that positions are made for; other sizes get interpolated ones.
        adjacent: slices, an odd number, whose channels the encoder sees together; the end slices repeat.
        heads: of the attention over slices, a divisor of the encoder's width.
        pool_z: neighbouring slices whose regions are averaged into one, to have fewer.
        chunk: slices that go through the encoder at a time outside of training, for memory.

    Raises:
        ConfigError: no 2D encoder, an even ``adjacent``, or channels or heads that do not fit it.

    Examples:
        >>> tower = slices(
        ...     encoder="resnet", options={"widths": [8, 16], "blocks": [1, 1]}, size_px=(32, 32, 6), pool_z=2
        ... )
        >>> tower(torch.zeros(1, 3, 32, 32, 6), torch.ones(1, 32, 32, 6, dtype=torch.bool)).region_grid
        (8, 8, 3)
    """
    if adjacent % 2 == 0:
        raise ConfigError(
            f"adjacent is {adjacent}; allowed are odd numbers: a slice and as many on each side."
        )
    if len(size_px) != 3:
        raise ConfigError(
            f"size_px is {tuple(size_px)}; encoder 'slices' reads volumes, which have 3 numbers."
        )
    asked = IMAGE_ENCODERS.options(encoder)
    known = {"channels": channels * adjacent, "size_px": (size_px[1], size_px[0])}
    inner = IMAGE_ENCODERS.build(
        encoder, {key: value for key, value in known.items() if key in asked} | dict(options or {})
    )
    if inner.axes != 2:
        raise ConfigError(
            f"encoder '{encoder}' reads volumes itself; slices need one that reads films.",
            hint="Allowed: efficientnet_lite0, resnet, resnet18, resnet50, densenet121, vit.",
        )
    if inner.channels != channels * adjacent:
        raise ConfigError(
            f"encoder '{encoder}' takes {inner.channels} channels; {adjacent} adjacent slices of {channels} "
            f"channels are {channels * adjacent}.",
            hint="Give three windows, or one window and adjacent: 3.",
        )
    if inner.width % heads:
        raise ConfigError(f"heads is {heads}; allowed are divisors of the encoder's width, {inner.width}.")
    architecture: dict[str, Any] = {
        "encoder": encoder,
        "options": inner.architecture,
        "channels": channels,
        "size_px": list(size_px),
        "adjacent": adjacent,
        "heads": heads,
        "pool_z": pool_z,
        "chunk": chunk,
    }
    return SliceTower(
        inner,
        adjacent=adjacent,
        heads=heads,
        slices=size_px[2],
        pool_z=pool_z,
        chunk=chunk,
        architecture=architecture,
    )
