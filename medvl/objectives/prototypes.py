"""Disease prototypes: balanced soft clusters that an image and its report must agree on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from medvl.objectives.contrast import unit

__all__ = ["Prototypes", "prototype_alignment", "sinkhorn"]


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "batch prototypes"], *, epsilon: float = 0.05, iterations: int = 3
) -> Float[Tensor, "batch prototypes"]:
    """Assign a batch to prototypes so that each prototype is used about equally.

    ``Q ← exp(z/ε)``; repeat {each prototype's mass → 1/K, each sample's mass → 1/B}; each sample's
    mass → 1. The constants 1/K and 1/B cancel in the next normalisation, so the log-space loop
    leaves them out. In log space nothing overflows and no mass is zero.

    Notation: ``z`` is ``scores``, ``ε`` is ``epsilon``.

    Examples:
        >>> sinkhorn(torch.zeros(2, 4)).tolist()
        [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]

    Source: Caron et al. 2020 (SwAV), arXiv 2006.09882, appendix A.
    """
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.softmax(dim=1)


def prototype_alignment(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    prototypes: Float[Tensor, "prototypes dim"],
    *,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Float[Tensor, ""]:
    """An image predicts its report's assignment to prototypes, and the report the image's.

    ``L = −½[mean_i Σ_k Q^v_ik log softmax_k(z^t_i/τ) + mean_i Σ_k Q^t_ik log softmax_k(z^v_i/τ)]``

    Notation: ``z^v = V Cᵀ``, ``z^t = T Cᵀ`` with normalised ``images``, ``texts`` and ``prototypes`` as
    they are; ``Q`` is :func:`sinkhorn` of ``z``, without gradient; ``τ`` is ``temperature``.

    Examples:
        >>> same = torch.ones(3, 4)
        >>> round(prototype_alignment(same, same, torch.ones(500, 4) / 2).item(), 4)  # ln 500
        6.2146

    Source: Wang et al. 2022 (MGCA), arXiv 2210.06044, §3.3.
    """
    z_image, z_text = unit(images) @ prototypes.T, unit(texts) @ prototypes.T
    q_image = sinkhorn(z_image, epsilon=epsilon, iterations=iterations)
    q_text = sinkhorn(z_text, epsilon=epsilon, iterations=iterations)
    by_text = (q_image * (z_text / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()
    by_image = (q_text * (z_image / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()
    return -(by_text + by_image) / 2


class Prototypes(nn.Module):
    """Learned unit vectors, still while the encoders settle.

    Args:
        count: number of prototypes K.
        dim: their width.
        frozen_epochs: epochs without gradient at the start.

    Examples:
        >>> Prototypes(count=3, dim=2)().norm(dim=1).round(decimals=4).tolist()
        [1.0, 1.0, 1.0]
    """

    epoch: Int[Tensor, ""]

    def __init__(self, *, count: int, dim: int, frozen_epochs: int = 1) -> None:
        super().__init__()
        self.frozen_epochs = frozen_epochs
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=-1))
        # A buffer, so that a run resumed inside an epoch is frozen as it was.
        self.register_buffer("epoch", torch.tensor(0))

    def forward(self) -> Float[Tensor, "prototypes dim"]:
        """Return the prototypes; their gradient is zero, not missing, while they are frozen."""
        return torch.where(self.epoch >= self.frozen_epochs, self.weight, self.weight.detach())

    def on_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring each prototype back to length 1; call it after each optimiser step."""
        self.weight.copy_(F.normalize(self.weight, dim=-1))
