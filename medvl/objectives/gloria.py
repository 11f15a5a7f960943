"""The objective ``gloria``: whole cases, and words with the regions of every image."""

from __future__ import annotations

import math
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import clip_loss, cross_entropy, false_negative_targets
from medvl.objectives.options import FalseNegatives, check_choice, check_numbers, false_negatives_mode
from medvl.objectives.targets import dense

__all__ = ["Gloria", "gloria_local_loss", "gloria_scores"]

Aggregate = Literal["mean", "sum"]

# Products of words with regions that are kept for the backward pass; images beyond are computed again.
KEPT_ENTRIES = 1 << 24
# Least product of squared lengths that a cosine divides by.
SMALLEST = 1e-16


def _attend(
    products: Float[Tensor, "words regions"], captions: list[int], sharpness: float
) -> tuple[Float[Tensor, "words regions"], Float[Tensor, "words regions"]]:
    """Return a and α of :func:`gloria_scores` for one image."""
    shares = torch.empty_like(products)
    for part, share in zip(products.split(captions), shares.split(captions), strict=True):
        torch.softmax(part, 0, out=share)
    # a lies in [0, 1]: its exponential needs no shift.
    attention = (shares * sharpness).exp_()
    return shares, attention.div_(attention.sum(dim=1, keepdim=True))


class _WordRegionCosines(torch.autograd.Function):
    """The cosine of every word with its context in every image, an image at a time.

    The words of all texts lie in one list without padding. No context is formed: with ``x_jk = w_j·r_k`` and
    the Gram matrix ``G`` of the regions, ``w_j·ctx_j = Σ_k α_jk x_jk`` and ``|ctx_j|² = α_jᵀ G α_j``. A
    cosine does not change with the length of the context, so ``Σ_k α_jk ∂cos_j/∂α_jk = 0``: the slope of the
    softmax over regions is ``α ∂cos/∂α``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        words: Float[Tensor, "words dim"],
        regions: Float[Tensor, "images regions dim"],
        seen: list[Bool[Tensor, " regions"] | None],
        captions: list[int],
        sharpness: float,
    ) -> Float[Tensor, "images words"]:
        lengths = words.square().sum(dim=1)
        cosines = words.new_empty(len(regions), len(words))
        norms = torch.empty_like(cosines)
        kept: list[Tensor] = []
        for image, mask in enumerate(seen):
            products, gram = _compare(words, regions[image], mask)
            _, attention = _attend(products, captions, sharpness)
            through = attention @ gram
            cosines[image] = torch.linalg.vecdot(products, attention)
            norms[image] = torch.linalg.vecdot(through, attention)
            if any(ctx.needs_input_grad) and (image + 1) * regions.shape[1] * len(words) <= KEPT_ENTRIES:
                kept += [products, gram]
        norms.mul_(lengths).clamp_min_(SMALLEST)
        cosines /= norms.sqrt()
        ctx.save_for_backward(words, regions, lengths, norms, cosines, *kept)
        ctx.seen, ctx.captions, ctx.sharpness = seen, captions, sharpness
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, "images words"]) -> tuple[Tensor | None, ...]:
        words, regions, lengths, norms, cosines, *kept = ctx.saved_tensors
        with full_precision(words.device):
            # Slopes by w·ctx, by |ctx|² (doubled, as a quadratic form asks) and by |w|².
            by_product = upstream / norms.sqrt()
            by_norm = -upstream * cosines * lengths / norms
            by_length = -(upstream * cosines).sum(dim=0) / lengths.clamp_min(SMALLEST)
            word_slope = words * by_length[:, None]
            region_slope = torch.zeros_like(regions)
            for image, mask in enumerate(ctx.seen):
                if 2 * image < len(kept):
                    products, gram = kept[2 * image : 2 * image + 2]
                else:
                    products, gram = _compare(words, regions[image], mask)
                shares, attention = _attend(products, ctx.captions, ctx.sharpness)
                through = attention @ gram
                direct, squared = by_product[image][:, None], by_norm[image][:, None]
                slope = products * (direct * ctx.sharpness)
                slope.addcmul_(through, squared * ctx.sharpness).mul_(attention).mul_(shares)
                for part, share in zip(slope.split(ctx.captions), shares.split(ctx.captions), strict=True):
                    part.addcmul_(share, part.sum(dim=0), value=-1)
                slope.addcmul_(attention, direct)
                own = regions[image] if mask is None else regions[image][mask]
                own_slope = torch.addmm(slope.T @ words, attention.T @ (attention * squared), own)
                word_slope.addmm_(slope, own)
                region_slope[image, slice(None) if mask is None else mask] = own_slope
        return word_slope, region_slope, None, None, None


def _compare(
    words: Float[Tensor, "words dim"],
    regions: Float[Tensor, "regions dim"],
    mask: Bool[Tensor, " regions"] | None,
) -> tuple[Float[Tensor, "words seen"], Float[Tensor, "seen seen"]]:
    """The products of words with the regions that count, and of these among themselves."""
    own = regions if mask is None else regions[mask]
    return words @ own.T, own @ own.T


def gloria_scores(
    words: Float[Tensor, "texts words dim"],
    word_mask: Bool[Tensor, "texts words"],
    regions: Float[Tensor, "images regions dim"],
    region_mask: Bool[Tensor, "images regions"],
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    aggregate: Aggregate = "sum",
) -> Float[Tensor, "texts images"]:
    """How well the words of each text fit each image, the same in training and at inference.

    ``a_kj = softmax_j(r_k·w_j)``, ``α_jk = softmax_k(γ₁ a_kj)``, ``ctx_j = Σ_k α_jk r_k``,
    ``Z = ln Σ_j exp(γ₂ cos(w_j, ctx_j))``

    Notation: ``w``, ``r`` are ``words``, ``regions`` as they come: the products are raw, so long vectors
    attend more sharply. ``γ₁`` is ``attention_scale``, ``γ₂`` ``word_scale``. Every softmax over words stays
    within its text. Padding takes part in nothing; a text without words scores −∞, an image without any
    visible region counts them all.

    Args:
        words: one vector a word.
        word_mask: True where a word is real.
        regions: one vector a region, of the same width.
        region_mask: True where a region sees the film.
        attention_scale: low looks at the whole image, high at one region.
        word_scale: low weighs all words, high the best one.
        aggregate: ``sum`` is the published formula, in which a text twice as long scores ln 2 higher;
            ``mean`` divides the sum by the number of words.

    Raises:
        ConfigError: an unknown ``aggregate``.

    Examples:
        >>> real = torch.ones(1, 3) > 0, torch.ones(1, 9) > 0
        >>> words, regions = torch.ones(1, 3, 4), torch.ones(1, 9, 4)
        >>> round(gloria_scores(words, real[0], regions, real[1]).item(), 4)  # 5 + ln 3
        6.0986
        >>> gloria_scores(words, real[0], regions, real[1], aggregate="mean").item()
        5.0

    Source: Huang et al. 2021 (GLoRIA), ICCV, eq. (2)–(5).
    """
    aggregate = aggregate_mode(aggregate)
    with full_precision(words.device):
        dtype = torch.promote_types(words.dtype, torch.float32)
        spoken = word_mask.any(dim=1)
        captions = word_mask.sum(dim=1)[spoken].tolist()
        inputs = [words[word_mask].to(dtype), regions.to(dtype)]
        if not torch.is_grad_enabled():
            # Otherwise a function keeps what the gradient of whatever requires one would need.
            inputs = [tensor.detach() for tensor in inputs]
        whole = (region_mask.all(dim=1) | ~region_mask.any(dim=1)).tolist()
        seen = [None if every else mask for every, mask in zip(whole, region_mask, strict=True)]
        cosines = _WordRegionCosines.apply(*inputs, seen, captions, attention_scale)
        scores = cosines.new_full((len(words), len(regions)), -math.inf)
        if captions:
            parts = (cosines * word_scale).split(captions, dim=1)
            found = torch.stack([part.logsumexp(dim=1) for part in parts])
            if aggregate == "mean":
                found = found - found.new_tensor(captions).log()[:, None]
            scores[spoken] = found
            return scores
        # Nothing to score, but something to take the gradient of.
        return scores + cosines.sum()


def gloria_local_loss(
    words: Float[Tensor, "batch words dim"],
    word_mask: Bool[Tensor, "batch words"],
    regions: Float[Tensor, "batch regions dim"],
    region_mask: Bool[Tensor, "batch regions"],
    positives: Float[Tensor, "batch batch"] | Positives,
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    scale: float = 10.0,
    aggregate: Aggregate = "sum",
    false_negatives: FalseNegatives = "none",
) -> Float[Tensor, ""]:
    """Texts and images must find each other by their words and regions.

    ``L = CE(s·Z) + CE(s·Zᵀ)``, ``Z`` of :func:`gloria_scores`, ``s`` of ``scale``

    A pair whose text has no word takes no part. Without any such text the loss is 0.

    Args:
        words: one vector a word.
        word_mask: True where a word is real.
        regions: one vector a region, of the same width.
        region_mask: True where a region sees the film.
        positives: how far text j describes image i, in [0, 1].
        attention_scale: see :func:`gloria_scores`.
        word_scale: see :func:`gloria_scores`.
        scale: inverse temperature of the contrast.
        aggregate: see :func:`gloria_scores`.
        false_negatives: what becomes of other texts that describe the image; see
            :func:`medvl.objectives.contrast.logit_mask_and_targets`.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``aggregate``.

    Examples:
        >>> same = torch.ones(4, 3, 2), torch.ones(4, 9, 2)
        >>> real = torch.ones(4, 3) > 0, torch.ones(4, 9) > 0
        >>> round(gloria_local_loss(same[0], real[0], same[1], real[1], torch.eye(4)).item(), 4)  # 2 ln 4
        2.7726

    Source: Huang et al. 2021 (GLoRIA), ICCV, eq. (6)–(8).
    """
    right = dense(positives)
    spoken = word_mask.any(dim=1)
    if not spoken.all():
        words, word_mask, regions, region_mask = (x[spoken] for x in (words, word_mask, regions, region_mask))
        right = right[spoken][:, spoken]
    logits = scale * gloria_scores(
        words,
        word_mask,
        regions,
        region_mask,
        attention_scale=attention_scale,
        word_scale=word_scale,
        aggregate=aggregate,
    )
    right = right.to(logits.dtype)
    by_image = cross_entropy(logits.T, *false_negative_targets(right, mode=false_negatives))
    by_text = cross_entropy(logits, *false_negative_targets(right.T, mode=false_negatives))
    return (by_image + by_text).sum() / max(1, len(logits))


def aggregate_mode(value: str) -> Aggregate:
    """Return ``value`` as a way to add up the words of a text.

    Raises:
        ConfigError: it is neither ``mean`` nor ``sum``.
    """
    check_choice("aggregate", value, get_args(Aggregate))
    return cast(Aggregate, value)


class Gloria(AlignmentObjective):
    """Global and local contrast of GLoRIA, ``L = λ₁ L_global + λ₂ L_local``, each the sum of both directions.

    ``L_global = CE(s·S) + CE(s·Sᵀ)`` (twice :func:`medvl.objectives.contrast.clip_loss`), ``L_local`` is
    :func:`gloria_local_loss` with the same ``s``. Nothing but the encoders is learned.

    Args:
        dim: width of the features; no parameter depends on it here.
        global_weight: λ₁.
        local_weight: λ₂.
        temperature: 1/s of both contrasts.
        attention_scale: γ₁, of the attention of a word over regions.
        word_scale: γ₂, of the sum over words.
        aggregate: ``sum`` (the paper) or ``mean`` (neutral to the length of the text).
        false_negatives: what becomes of other texts that describe an image, in both; the paper has none.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``aggregate``, a negative weight or scale, or a
            ``temperature`` below 0.01.

    Source: Huang et al. 2021, "GLoRIA: A Multimodal Global-Local Representation Learning Framework", ICCV.
    """

    needs_local = True

    def __init__(
        self,
        dim: int,
        *,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        temperature: float = 0.1,
        attention_scale: float = 4.0,
        word_scale: float = 5.0,
        aggregate: str = "sum",
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, global_weight=global_weight, local_weight=local_weight)
        check_numbers(0.0, attention_scale=attention_scale, word_scale=word_scale)
        check_numbers(0.01, temperature=temperature)
        self.weights = {"global": global_weight, "local": local_weight}
        self.scale = 1 / temperature
        self.attention_scale, self.word_scale = attention_scale, word_scale
        self.aggregate = aggregate_mode(aggregate)
        self.false_negatives = false_negatives_mode(false_negatives)

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch and its two weighted terms."""
        whole = 2 * clip_loss(
            image_features.pooled,
            text_features.pooled,
            positives,
            scale=self.scale,
            false_negatives=self.false_negatives,
        )
        # Autocast would bring the logits back to half precision.
        with full_precision(whole.device):
            local = gloria_local_loss(
                text_features.words,
                text_features.word_mask,
                image_features.regions,
                image_features.region_mask,
                positives,
                attention_scale=self.attention_scale,
                word_scale=self.word_scale,
                scale=self.scale,
                aggregate=self.aggregate,
                false_negatives=self.false_negatives,
            )
        return weighted({"global": whole, "local": local}, self.weights)
