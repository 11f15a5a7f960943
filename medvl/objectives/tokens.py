"""Contrast of words with regions inside one pair: MGCA's cross-modal token alignment."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medvl.objectives.contrast import unit
from medvl.objectives.options import PatchContext

__all__ = ["attended_contrast", "clipped_weights", "token_alignment"]


def clipped_weights(
    weights: Float[Tensor, "batch tokens"] | None,
    mask: Bool[Tensor, "batch tokens"],
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch tokens"]:
    """Token weights ω: attention clipped to its 10–90 % quantiles, summing to 1 a row, detached.

    Quantiles are taken row by row over the valid non-zero entries; zero entries stay zero. Without
    ``weights``, or where a row has no non-zero one, ω is uniform over the valid tokens. A row without
    valid tokens is all zero.

    Examples:
        >>> clipped_weights(None, torch.tensor([[True, True, False], [False, False, False]])).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    uniform = mask.to(dtype)
    if weights is None or weights.shape[-1] == 0:
        omega = uniform
    else:
        weights = weights.detach().to(dtype)
        counted = mask & (weights > 0)
        any_counted = counted.any(dim=-1, keepdim=True)
        # A row without entries would have no quantile; it gets the uniform weights below.
        entries = torch.where(counted, weights, math.nan).where(any_counted, 0.0)
        low, high = torch.nanquantile(
            entries, torch.tensor([0.1, 0.9], dtype=dtype, device=entries.device), dim=-1, keepdim=True
        )
        clipped = torch.where(counted, weights.clamp(low, high), 0.0)
        omega = torch.where(any_counted, clipped, uniform)
    return omega / omega.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)


def attended_contrast(
    queries: Float[Tensor, "batch queries dim"],
    keys: Float[Tensor, "batch keys dim"],
    query_mask: Bool[Tensor, "batch queries"],
    key_mask: Bool[Tensor, "batch keys"],
    weights: Float[Tensor, "batch queries"],
    *,
    temperature: float,
    context: Literal["raw", "unit"],
) -> Float[Tensor, ""]:
    """Each token must find the context that it attends to, among the contexts of its own pair.

    ``a_jk = softmax_k(q_j·k_k/τ)``, ``o_j = Σ_k a_jk k_k``, ``Z_jl = q_j·o_l/τ``,
    ``L = ½ · (1/B) Σ_i [Σ_j ω_j CE(Z_j:, j) + Σ_j ω_j CE(Z_:j, j)]``

    Notation: ``q``, ``k`` are the normalised ``queries``, ``keys``; ``τ`` is ``temperature``; ``ω`` is
    ``weights``; ``context`` says whether ``o`` is normalised. Padding takes part in no softmax.
    A pair without valid queries or without valid keys contributes zero.

    Source: Wang et al. 2022 (MGCA), arXiv 2210.06044, eq. (4)–(6).
    """
    queries, keys = unit(queries), unit(keys)
    has_both = (query_mask.any(dim=-1) & key_mask.any(dim=-1))[:, None]
    # A softmax over nothing is NaN: an empty pair keeps all its entries and gets zero weight.
    query_mask, key_mask = query_mask | ~has_both, key_mask | ~has_both
    weights = torch.where(has_both, weights.to(queries.dtype), 0.0)

    scores = torch.einsum("bjd,bkd->bjk", queries, keys) / temperature
    attention = scores.masked_fill(~key_mask[:, None, :], -math.inf).softmax(dim=-1)
    attended = torch.einsum("bjk,bkd->bjd", attention, keys)
    if context == "unit":
        attended = F.normalize(attended, dim=-1)
    logits = torch.einsum("bjd,bld->bjl", queries, attended) / temperature

    own = logits.diagonal(dim1=-2, dim2=-1)
    over_contexts = logits.masked_fill(~query_mask[:, None, :], -math.inf).logsumexp(dim=-1) - own
    over_queries = logits.masked_fill(~query_mask[:, :, None], -math.inf).logsumexp(dim=-2) - own
    return (weights * (over_contexts + over_queries)).sum() / (2 * len(queries))


def token_alignment(
    words: Float[Tensor, "batch words dim"],
    regions: Float[Tensor, "batch regions dim"],
    word_mask: Bool[Tensor, "batch words"],
    region_mask: Bool[Tensor, "batch regions"],
    word_weights: Float[Tensor, "batch words"] | None = None,
    region_weights: Float[Tensor, "batch regions"] | None = None,
    *,
    temperature: float = 0.1,
    patch_context: PatchContext = "auto",
) -> Float[Tensor, ""]:
    """Words find regions and regions find words, inside each pair.

    ``L = L_word + L_patch``, each an :func:`attended_contrast`.

    Args:
        words: one vector a word.
        regions: one vector a region, of the same width.
        word_mask: True where a word is real.
        region_mask: True where a region sees the film.
        word_weights: attention of the text vector to each word; None is uniform.
        region_weights: attention of the image vector to each region; None is uniform.
        temperature: τ of the attention and of the contrast.
        patch_context: whether the words that a region attends to are normalised after averaging.
            ``raw`` (no) is what the authors do with a ViT, ``unit`` (yes) with a CNN; ``auto`` is
            ``raw`` where the encoder gives ``region_weights`` and ``unit`` where it does not.

    Examples:
        >>> words, regions = torch.ones(2, 111, 4), torch.ones(2, 196, 4)
        >>> real = torch.ones(2, 111, dtype=torch.bool), torch.ones(2, 196, dtype=torch.bool)
        >>> round(token_alignment(words, regions, *real).item(), 4)  # ln 111 + ln 196
        9.9876

    Source: Wang et al. 2022 (MGCA), arXiv 2210.06044, §3.2.
    """
    if patch_context == "auto":
        patch_context = "unit" if region_weights is None else "raw"
    dtype = torch.promote_types(words.dtype, torch.float32)
    by_word = attended_contrast(
        words,
        regions,
        word_mask,
        region_mask,
        clipped_weights(word_weights, word_mask, dtype=dtype),
        temperature=temperature,
        context="unit",
    )
    by_region = attended_contrast(
        regions,
        words,
        region_mask,
        word_mask,
        clipped_weights(region_weights, region_mask, dtype=dtype),
        temperature=temperature,
        context=patch_context,
    )
    return by_word + by_region
