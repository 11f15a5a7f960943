"""One vector from many: a learned query that attends to the regions of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.errors import ConfigError

__all__ = ["AttentionPool"]


class AttentionPool(nn.Module):
    """One learned query, several heads, over the regions that see the film.

    ``pooled = LN(W_o · concat_h Σ_p softmax_p(q_h·k_hp/√d_h) v_hp)``, with keys and values linear in the
    layer-normalised regions.

    Args:
        width: of a region.
        heads: attention heads; a divisor of ``width``.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.

    Examples:
        >>> pool = AttentionPool(8, heads=2)
        >>> pool(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).shape
        torch.Size([3, 8])

    Source: Yu et al. 2022 (CoCa), arXiv 2205.01917, §3.2, with one query for the contrast.
    """

    def __init__(self, width: int, *, heads: int = 8) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"the regions are {width} wide; {heads} heads do not divide that.")
        self.heads = heads
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, regions: Float[Tensor, "batch regions width"], mask: Bool[Tensor, "batch regions"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector an image; an image without any valid region counts them all."""
        batch, count, width = regions.shape
        keys, values = (
            part.view(batch, count, self.heads, -1).transpose(1, 2)
            for part in self.keys_values(self.before(regions)).chunk(2, dim=-1)
        )
        query = self.query.view(1, self.heads, 1, -1).expand(batch, -1, -1, -1).to(keys.dtype)
        seen = mask | ~mask.any(dim=1, keepdim=True)
        pooled = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None, None, :])
        return self.after(self.out(pooled.reshape(batch, width)))
