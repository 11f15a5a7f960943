"""SimCSE: a text is nearest its other wording, and far from the texts beside it and its hard negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medvl.errors import ConfigError

__all__ = ["simcse_loss"]


def simcse_loss(
    queries: Float[Tensor, "batch width"],
    documents: Float[Tensor, "columns width"],
    *,
    scale: float = 20.0,
    same: Bool[Tensor, "batch columns"] | None = None,
) -> Float[Tensor, ""]:
    """Return the one-directional contrast of queries with documents.

    ``L = −(1/B) Σ_i log ( exp(s·q_iᵀd_i) / Σ_j exp(s·q_iᵀd_j) )`` with unit q and d, over all columns j: the
    B documents and then any number of hard negatives (Gao et al. 2021, arXiv 2104.08821; LLM2Vec, arXiv
    2404.05961). Features that are all equal give ``ln B``, with one hard negative each ``ln 2B``.

    Args:
        queries: q, one a text; not yet normalised.
        documents: d, document i that of query i, hard negatives below.
        scale: s, the inverse of the temperature.
        same: True where column j says the same as query i: it leaves the sum; the diagonal never does.

    Raises:
        ConfigError: fewer documents than queries.

    Examples:
        >>> eye = torch.eye(4)
        >>> f"{float(simcse_loss(eye.double(), eye.double())):.2e}"  # ln(1 + 3 exp(−20))
        '6.18e-09'
    """
    if len(documents) < len(queries):
        raise ConfigError(
            f"there are {len(documents)} documents for {len(queries)} queries.",
            hint="Document i is the other wording of query i; hard negatives come after them.",
        )
    with torch.autocast(queries.device.type, enabled=False):
        kind = torch.float64 if queries.dtype == torch.float64 else torch.float32
        logits = scale * F.normalize(queries.to(kind), dim=1) @ F.normalize(documents.to(kind), dim=1).T
        own = torch.arange(len(queries), device=queries.device)
        if same is not None:
            excluded = same.clone()
            excluded[own, own] = False
            logits = logits.masked_fill(excluded, -torch.inf)
        return F.cross_entropy(logits, own)
