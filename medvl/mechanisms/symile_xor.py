"""C12: what only three modalities together say is found by a product of three, never by pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from medvl.mechanisms.claim import Effect, Mechanism
from medvl.mechanisms.nets import fit
from medvl.objectives.contrast import LogitScale, clip_loss, unit
from medvl.objectives.symile import symile_loss

__all__ = ["MECHANISM", "run"]

_BITS, _DIM = 5, 32
_VALUES = 2**_BITS
_Loss = Callable[[Sequence[Float[Tensor, "batch dim"]], Float[Tensor, ""], Tensor, torch.Generator], Tensor]


def run(seed: int, *, quick: bool, steps: int = 1200) -> dict[str, float]:
    """Train encoders of a, b and a XOR b with pairs and with triples; name the third from the other two."""
    triples = _accuracy(_triples, seed=seed, steps=steps, by_product=True)
    return {
        "pairs/accuracy": _accuracy(_pairs, seed=seed, steps=steps),
        "symile/accuracy": triples,
        "symile/short of 1": 1 - triples,
        "chance": 1 / _VALUES,
    }


def _pairs(
    vectors: Sequence[Float[Tensor, "batch dim"]],
    scale: Float[Tensor, ""],
    same: Float[Tensor, "batch batch"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    x, y, z = vectors
    losses = [
        clip_loss(one, other, same, scale=scale, false_negatives="mask")
        for one, other in ((x, y), (x, z), (y, z))
    ]
    return torch.stack(losses).sum()


def _triples(
    vectors: Sequence[Float[Tensor, "batch dim"]],
    scale: Float[Tensor, ""],
    same: Float[Tensor, "batch batch"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    return symile_loss(vectors, scale=scale, positives=same, false_negatives="mask", generator=generator)


def _accuracy(loss_of: _Loss, *, seed: int, steps: int, by_product: bool = False) -> float:
    torch.manual_seed(seed)
    numbers = torch.arange(_VALUES)
    bits = 2.0 * ((numbers[:, None] >> torch.arange(_BITS)) & 1) - 1
    encoders = nn.ModuleList(
        nn.Sequential(nn.Linear(_BITS, 64), nn.ReLU(), nn.Linear(64, _DIM)) for _ in range(3)
    )
    scale = LogitScale(temperature=0.15)
    a, b = torch.cartesian_prod(numbers, numbers).T
    thirds = a ^ b

    def loss(rows: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        parts = (a[rows], b[rows], thirds[rows])
        vectors = [encoder(bits[part]) for encoder, part in zip(encoders, parts, strict=True)]
        return loss_of(vectors, scale(), torch.eye(len(rows)), generator)

    fit([encoders, scale], loss, rows=len(a), steps=steps, batch=96, lr=1e-2, seed=seed, weight_decay=0.0)
    with torch.no_grad():
        x, y, z = (unit(encoder(bits)) for encoder in encoders)
        scores = (x[a] * y[b]) @ z.T if by_product else x[a] @ z.T + y[b] @ z.T
    return float((scores.argmax(dim=1) == thirds).float().mean())


MECHANISM = Mechanism(
    key="C12",
    title="three modalities need a loss of order three",
    claim="On XOR data pairwise CLIP stays at chance while Symile names the third modality: in a pilot "
    "0.033 against 1.000, chance 0.031, on five bits.",
    source="Saporta et al. 2024, Symile, arXiv 2411.01053",
    setting="Five random bits a, five random bits b and a XOR b, an MLP for each (5–64–32), 1,200 steps of "
    "96 cases; accuracy of naming the third of 32 from the other two over all 1,024 pairs. Pairs score by "
    "the sum of both cosines, Symile by the product of three.",
    run=run,
    effects=(
        Effect("accuracy, triples over pairs", "symile/accuracy", "pairs/accuracy"),
        Effect("accuracy of triples short of 1", "symile/short of 1", wanted="none", slack=0.01),
        Effect("accuracy of pairs over chance", "pairs/accuracy", "chance", wanted="none", slack=0.02),
    ),
    tried="Seed 4 stands at 0.494 with 600 steps and at 0.504 with 1,200: it has lost one of the five bits, "
    "and more steps do not bring it back; the other seeds reach 1.000 with either.",
)
