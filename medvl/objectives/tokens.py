"""Contrast of words with regions inside one pair: MGCA's cross-modal token alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvl.objectives.chunked import blocks, exponent_dtype, full_precision
from medvl.objectives.options import PatchContext

__all__ = ["clipped_weights", "token_alignment"]

# Matrices of (words or regions)² entries that a pair needs at once.
BLOCK_MATRICES = 2
# Least sum of exponentials, and least length, that is divided by.
SMALLEST = 1e-36


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


class _TokenAlignment(torch.autograd.Function):
    """Both directions of :func:`token_alignment` over blocks of pairs.

    No pair needs another: value and gradient of a block are taken together, and nothing of it is kept. The
    vectors get the length 1/√τ, or 0 where they are padding; ``x = w·p`` is then bounded by 1/τ, and one
    ``exp(x)``, without a shift, serves the attention of words over regions and that of regions over words.
    """

    @staticmethod
    def forward(
        ctx: Any,
        words: Float[Tensor, "batch words dim"],
        regions: Float[Tensor, "batch regions dim"],
        word_mask: Float[Tensor, "batch words"],
        region_mask: Float[Tensor, "batch regions"],
        word_weights: Float[Tensor, "batch words"],
        region_weights: Float[Tensor, "batch regions"],
        temperature: float,
        patch_context: Literal["raw", "unit"],
    ) -> Float[Tensor, ""]:
        length = temperature**-0.5
        learning = any(ctx.needs_input_grad)
        losses = torch.empty(len(words), dtype=torch.float64, device=words.device)
        slopes: tuple[Any, ...] = (torch.empty_like(words), torch.empty_like(regions)) if learning else ()
        entries = BLOCK_MATRICES * max(words.shape[1], regions.shape[1], 1) ** 2
        for part in blocks(len(words), None, columns=entries, device=words.device):
            w, by_length = _of_length(words[part], word_mask[part], length)
            p, by_region_length = _of_length(regions[part], region_mask[part], length)
            products = torch.bmm(w, p.transpose(1, 2))
            exponentials = products.exp()
            real = word_mask[part], region_mask[part]
            word = _unit_contexts(exponentials, w, p, real[0], word_weights[part], length)
            if patch_context == "raw":
                region = _raw_contexts(exponentials, products, *real, region_weights[part])
            else:
                mirrored = exponentials.transpose(1, 2)
                region = _unit_contexts(mirrored, p, w, real[1], region_weights[part], length)
                region = replace(region, by_product=region.by_product.transpose(1, 2))
            losses[part] = word.losses + region.losses
            if learning:
                slope = word.by_product.add_(region.by_product)
                by_word: Any = word.by_query
                by_region: Any = word.by_key
                if region.by_query is not None:
                    by_word, by_region = by_word + region.by_key, by_region + region.by_query
                word_slope = torch.baddbmm(by_word, slope, p)
                region_slope = torch.baddbmm(by_region, slope.transpose(1, 2), w)
                slopes[0][part] = _across(word_slope, w, length).mul_(by_length)
                slopes[1][part] = _across(region_slope, p, length).mul_(by_region_length)
        ctx.save_for_backward(*slopes)
        return losses.sum().to(words.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        return *(slope * upstream for slope in ctx.saved_tensors), *[None] * 6


@dataclass(frozen=True)
class _Direction:
    """``Σ_j ω_j [CE(Z_j:, j) + CE(Z_:j, j)]`` of each pair; its slopes by q·k, and beside that by q and k."""

    losses: Float[Tensor, " pairs"]
    by_product: Float[Tensor, "pairs _ _"]
    by_query: Float[Tensor, "pairs _ dim"] | None = None
    by_key: Float[Tensor, "pairs _ dim"] | None = None


def _of_length(
    vectors: Float[Tensor, "pairs tokens dim"], mask: Float[Tensor, "pairs tokens"], length: float
) -> tuple[Float[Tensor, "pairs tokens dim"], Float[Tensor, "pairs tokens 1"]]:
    """Vectors brought to ``length``, or to 0 where ``mask`` is, and what they were multiplied by."""
    factor = (mask * length)[..., None] / torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min_(
        1e-12
    )
    return vectors * factor, factor


def _across(
    slope: Float[Tensor, "pairs tokens dim"], vectors: Float[Tensor, "pairs tokens dim"], length: float
) -> Float[Tensor, "pairs tokens dim"]:
    """Take from ``slope`` what lies along ``vectors`` of the given length, which they cannot follow."""
    along = (slope * vectors).sum(dim=2, keepdim=True)
    return slope.addcmul_(vectors, along, value=-1 / length**2)


def _unit_contexts(
    exponentials: Float[Tensor, "pairs queries keys"],
    queries: Float[Tensor, "pairs queries dim"],
    keys: Float[Tensor, "pairs keys dim"],
    mask: Float[Tensor, "pairs queries"],
    weights: Float[Tensor, "pairs queries"],
    length: float,
) -> _Direction:
    """The direction whose contexts are brought to ``length``: of the sum of keys, not of their mean.

    A context that is normalised afterwards needs no normalised attention, ``o = Σ_k e^x_k k / |…|``, and does
    not change with the scale of what it sums up.
    """
    contexts = torch.bmm(exponentials, keys)
    lengths = torch.linalg.vector_norm(contexts, dim=2, keepdim=True).div_(length).clamp_min_(SMALLEST)
    contexts.div_(lengths)
    logits = torch.bmm(queries, contexts.transpose(1, 2))
    losses = _two_way(logits, mask, weights)
    by_query = torch.bmm(logits, contexts)
    slope = torch.bmm(logits.transpose(1, 2), queries)
    slope = _across(slope, contexts, length).div_(lengths)
    by_product = torch.bmm(slope, keys.transpose(1, 2)).mul_(exponentials)
    return _Direction(losses, by_product, by_query, torch.bmm(exponentials.transpose(1, 2), slope))


def _raw_contexts(
    exponentials: Float[Tensor, "pairs keys queries"],
    products: Float[Tensor, "pairs keys queries"],
    key_mask: Float[Tensor, "pairs keys"],
    query_mask: Float[Tensor, "pairs queries"],
    weights: Float[Tensor, "pairs queries"],
) -> _Direction:
    """The direction whose contexts are left as they are: ``Z = x aᵀ`` needs no context at all."""
    sums = torch.bmm(key_mask[:, None], exponentials).clamp_min_(SMALLEST)
    attention = exponentials / sums
    logits = torch.bmm(products.transpose(1, 2), attention)
    losses = _two_way(logits, query_mask, weights)
    slope = torch.bmm(products, logits)
    along = (slope * attention).sum(dim=1, keepdim=True)
    slope.sub_(along).mul_(attention)
    return _Direction(losses, slope.baddbmm_(attention, logits.transpose(1, 2)))


def _two_way(
    logits: Float[Tensor, "pairs tokens tokens"],
    mask: Float[Tensor, "pairs tokens"],
    weights: Float[Tensor, "pairs tokens"],
) -> Float[Tensor, " pairs"]:
    """Return the loss of each pair, and turn its logits into their slopes."""
    own = logits.diagonal(dim1=1, dim2=2).clone()
    logits.exp_()
    rows = torch.bmm(logits, mask[..., None])[..., 0].clamp_min_(SMALLEST)
    columns = torch.bmm(mask[:, None], logits)[:, 0].clamp_min_(SMALLEST)
    losses = (weights * (rows.log() + columns.log() - 2 * own)).sum(dim=1)
    # ω_j/r_j + ω_l/c_l where both tokens are real: an outer product of rank two.
    left = torch.stack([weights / rows, mask], dim=2)
    logits.mul_(torch.bmm(left, torch.stack([mask, weights / columns], dim=1)))
    logits.diagonal(dim1=1, dim2=2).sub_(2 * weights)
    return losses


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

    ``L = L_word + L_patch``. For ``L_word``, words are the queries ``q`` and regions the keys ``k``:

    ``a_jk = softmax_k(q_j·k_k/τ)``, ``o_j = Σ_k a_jk k_k``, ``Z_jl = q_j·o_l/τ``,
    ``L_word = ½ · (1/B) Σ_i [Σ_j ω_j CE(Z_j:, j) + Σ_j ω_j CE(Z_:j, j)]``

    ``L_patch`` is the mirror image.

    Notation: ``q``, ``k`` are normalised, and so is ``o``, but see ``patch_context``; ``τ`` is
    ``temperature``; ``ω`` are :func:`clipped_weights`. Padding takes part in no softmax. A pair without
    words or without regions contributes zero.

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
    with full_precision(words.device):
        dtype = torch.promote_types(words.dtype, torch.float32)
        # A pair that lacks one side has no contrast.
        both = (word_mask.any(dim=1) & region_mask.any(dim=1))[:, None]
        size = max(words.shape[1], regions.shape[1])
        work = exponent_dtype(1 / temperature, size=size, dtype=dtype)
        vectors, masks, omegas = [words.to(work), regions.to(work)], [], []
        for mask, weights in ((word_mask, word_weights), (region_mask, region_weights)):
            masks.append((mask & both).to(work))
            omegas.append(clipped_weights(weights, mask, dtype=work) * both / (2 * max(1, len(words))))
        if not torch.is_grad_enabled():
            # Otherwise a function takes the gradients of what requires them all the same.
            vectors = [tensor.detach() for tensor in vectors]
        return _TokenAlignment.apply(*vectors, *masks, *omegas, temperature, patch_context).to(dtype)
