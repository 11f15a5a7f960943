"""Next-token prediction, and masked next-token prediction: what a decoder learns once it may look ahead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from medvl.errors import ConfigError

__all__ = ["IGNORED", "hide_tokens", "next_token_loss", "next_token_targets", "states_before"]

IGNORED = -1
"""The target of a place that carries no loss."""


def next_token_targets(
    tokens: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"]
) -> Int[Tensor, "batch tokens"]:
    """Return the targets of a causal model: every real token but the first of its text.

    Args:
        tokens: ids.
        mask: 0 padding, k sentence k, −1 a special token; padding may stand on either side.
    """
    real = mask != 0
    return tokens.masked_fill(~real | (real.cumsum(1) == 1), IGNORED)


def hide_tokens(
    tokens: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"],
    *,
    rate: float = 0.2,
    mask_id: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Hide a share of the words' tokens; return what the model sees and what it must say.

    Masked next-token prediction of LLM2Vec (arXiv 2404.05961): the hidden token at i is told from the state
    at i − 1, as a decoder's head is used to. So the first token of a text is never hidden; nor are padding
    and special tokens.

    Args:
        tokens: ids.
        mask: see :func:`next_token_targets`.
        rate: probability that a token is hidden.
        mask_id: the id that stands in its place.
        generator: draws the places.

    Raises:
        ConfigError: ``rate`` is not between 0 and 1.

    Examples:
        >>> ids, mask = torch.tensor([[2, 7, 8, 3, 0]]), torch.tensor([[-1, 1, 1, -1, 0]])
        >>> seen, targets = hide_tokens(ids, mask, rate=1.0, mask_id=4, generator=torch.Generator())
        >>> seen.tolist(), targets.tolist()
        ([[2, 4, 4, 3, 0]], [[-1, 7, 8, -1, -1]])
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"the share of hidden tokens is {rate}.", hint="Allowed are values in (0, 1].")
    first = (mask != 0).cumsum(1) == 1
    drawn = torch.rand(tokens.shape, generator=generator).to(tokens.device) < rate
    hidden = drawn & (mask > 0) & ~first
    return tokens.masked_fill(hidden, mask_id), tokens.masked_fill(~hidden, IGNORED)


def states_before(
    states: Float[Tensor, "batch tokens width"], targets: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "places width"], Int[Tensor, " places"]]:
    """Return the state at i − 1 for each target at i, and the targets: the head reads these places alone."""
    told = targets[:, 1:] != IGNORED
    return states[:, :-1][told], targets[:, 1:][told]


def next_token_loss(
    logits: Float[Tensor, "places vocab"], targets: Int[Tensor, " places"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats; zero, with a gradient, where there is no place.

    ``L = −(1/n) Σ_i log softmax(z_{i−1})[y_i]``; uniform logits give ``ln V``.

    Examples:
        >>> round(float(next_token_loss(torch.zeros(3, 8), torch.tensor([0, 5, 7]))), 4)  # ln 8
        2.0794
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(1, len(targets))
