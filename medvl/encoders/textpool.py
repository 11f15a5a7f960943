"""How the states of tokens become one vector a text, and which tokens are one word or sentence."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medvl.errors import ConfigError

__all__ = ["HEADS", "LATENTS", "LatentPool", "Pooling", "membership", "pool_tokens", "word_weights"]

Pooling = Literal["mean", "cls", "last", "weighted", "latent"]
LATENTS, HEADS = 512, 8


def pool_tokens(
    hidden: Float[Tensor, "batch tokens width"], real: Bool[Tensor, "batch tokens"], *, pooling: str
) -> Float[Tensor, "batch width"]:
    """Return the weighted sum of the states of the real tokens; zeros where a text has none.

    With n real tokens the weight of the r-th is ``1/n`` (``mean``), 1 for the first alone (``cls``), 1 for
    the last alone (``last``, the end token), or ``2r/(n(n + 1))`` (``weighted``: later tokens of a causal
    model have read more).

    Examples:
        >>> states, real = torch.tensor([[[1.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> [float(pool_tokens(states, real, pooling=name)) for name in ("mean", "cls", "last", "weighted")]
        [2.5, 1.0, 4.0, 3.0]
    """
    rank = real.cumsum(1) * real
    count = real.sum(1, keepdim=True).clamp(min=1)
    if pooling == "mean":
        weights = real / count
    elif pooling == "weighted":
        weights = 2 * rank / (count * (count + 1))
    else:
        weights = (rank == (1 if pooling == "cls" else count)) & real
    return torch.einsum("btd,bt->bd", hidden, weights.to(hidden.dtype))


def membership(numbers: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens groups"]:
    """Return membership of each token in groups 1…n, at least one group."""
    groups = torch.arange(1, max(1, int(numbers.max()) if numbers.numel() else 1) + 1, device=numbers.device)
    return numbers[..., None] == groups


def word_weights(
    attention: Float[Tensor, "batch heads tokens tokens"], token_mask: Tensor, to_word: Tensor
) -> Float[Tensor, "batch words"]:
    """Return the attention of the first real token to the pieces of each word, scaled to sum 1."""
    first = (token_mask != 0).int().argmax(1)
    rows = attention.detach().float().mean(1)[torch.arange(len(first), device=first.device), first]
    weights = torch.einsum("bt,btw->bw", rows, to_word.float())
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


class LatentPool(nn.Module):
    """Latent attention (NV-Embed, arXiv 2405.17428): each token asks a learned dictionary.

    ``o_t = MLP(Attention(q = h_t, k = v = Z))`` with ``MLP(x) = W₂ GELU(W₁ x)``, no residual; the text's
    vector is the mean of o_t over its real tokens, so their order means nothing here.

    Args:
        width: d, of the states; a multiple of ``heads``.
        latents: rows of Z.
        heads: of the attention.

    Raises:
        ConfigError: ``width`` is no multiple of ``heads``.
    """

    def __init__(self, width: int, *, latents: int = LATENTS, heads: int = HEADS) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"latent pooling has {heads} heads, and the states are {width} wide.",
                hint=f"Use another pooling, or a width that is a multiple of {heads}.",
            )
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        first, second = nn.Linear(width, width), nn.Linear(width, width)
        # At first all tokens get nearly the same mean of the latents; biases would drown what differs.
        nn.init.zeros_(first.bias)
        nn.init.zeros_(second.bias)
        self.mlp = nn.Sequential(first, nn.GELU(), second)

    def forward(
        self, hidden: Float[Tensor, "batch tokens width"], real: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector a text."""
        # Keys are the same for every token, so each token is read alone: padding cannot reach another.
        latents = self.latents.expand(len(hidden), -1, -1)
        answers = self.mlp(self.attention(hidden, latents, latents, need_weights=False)[0])
        return pool_tokens(answers, real, pooling="mean")
