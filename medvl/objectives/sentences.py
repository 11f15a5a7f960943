"""Contrast of sentences with the regions of every image: a sentence must find its own image."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvl.objectives.contrast import cross_entropy, logit_mask_and_targets, unit
from medvl.objectives.options import FalseNegatives, SharedSentences

__all__ = ["said_by", "sentence_keys", "sentence_region_loss", "sentence_region_scores"]

# Sentence × image × region entries computed at once: 4 MiB in single precision stay in a processor's
# cache; an accelerator wants fewer, larger blocks.
CPU_BLOCK_ENTRIES = 1 << 20
BLOCK_ENTRIES = 1 << 25


def _attend(
    sentences: Float[Tensor, "sentences dim"],
    regions: Float[Tensor, "batch regions dim"],
    empty: Bool[Tensor, "batch regions"],
    temperature: float,
) -> tuple[Float[Tensor, "sentences batch regions"], Float[Tensor, "sentences batch regions"]]:
    """Return the similarity of sentences with regions, and the attention over the regions."""
    similarity = (sentences @ regions.flatten(0, 1).T).unflatten(1, regions.shape[:2])
    return similarity, (similarity / temperature).masked_fill_(empty, -math.inf).softmax(dim=-1)


class _BlockwiseScores(torch.autograd.Function):
    """Scores by blocks of sentences; the backward pass computes each block again.

    ``∂score/∂x_p = a_p (1 + (x_p − score)/τ)`` for ``score = Σ_p a_p x_p``, ``a = softmax(x/τ)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sentences: Float[Tensor, "sentences dim"],
        regions: Float[Tensor, "batch regions dim"],
        empty: Bool[Tensor, "batch regions"],
        temperature: float,
        rows: int,
    ) -> Float[Tensor, "sentences batch"]:
        blocks = []
        for block in sentences.split(rows):
            similarity, attention = _attend(block, regions, empty, temperature)
            blocks.append(attention.mul_(similarity).sum(dim=-1))
        scores = torch.cat(blocks)
        ctx.save_for_backward(sentences, regions, empty, scores)
        ctx.temperature, ctx.rows = temperature, rows
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "sentences batch"]) -> tuple[Tensor | None, ...]:
        sentences, regions, empty, scores = ctx.saved_tensors
        by_sentence, by_region = [], torch.zeros_like(regions).flatten(0, 1)
        for block, score, upstream in zip(
            sentences.split(ctx.rows), scores.split(ctx.rows), gradient.split(ctx.rows), strict=True
        ):
            similarity, attention = _attend(block, regions, empty, ctx.temperature)
            slope = similarity.sub_(score[..., None]).div_(ctx.temperature).add_(1.0).mul_(attention)
            slope = slope.mul_(upstream[..., None]).flatten(1)
            by_sentence.append(slope @ regions.flatten(0, 1))
            by_region += slope.T @ block
        return torch.cat(by_sentence), by_region.view_as(regions), None, None, None


def sentence_region_scores(
    sentences: Float[Tensor, "sentences dim"],
    regions: Float[Tensor, "batch regions dim"],
    region_mask: Bool[Tensor, "batch regions"],
    *,
    temperature: float = 0.1,
    block_entries: int | None = None,
) -> Float[Tensor, "sentences batch"]:
    """How well each sentence describes some place of each image.

    ``a = softmax_p(e_m·p_b/τ)``, ``score_mb = Σ_p a_p (e_m·p_b)``

    Notation: ``e``, ``p`` are the normalised ``sentences``, ``regions``; ``τ`` is ``temperature``. The
    sum over regions is fused into the attention, so no attended vector is ever formed, and blocks of
    sentences are recomputed in the backward pass: memory is ``sentences × batch`` plus one block.

    Args:
        sentences: one vector a sentence, those of all reports in one list.
        regions: one vector a region of each image.
        region_mask: True where a region sees the film; an image without any counts them all.
        temperature: low looks at the best region, high at the mean.
        block_entries: sentence × image × region entries held at once; None suits the device.

    Examples:
        >>> left_or_right = torch.eye(2)[None]  # one image of two regions
        >>> score = sentence_region_scores(torch.eye(2)[:1], left_or_right, torch.ones(1, 2) > 0)
        >>> round(score.item(), 6)  # 1 / (1 + e^-10)
        0.999955
    """
    sentences, regions = unit(sentences), unit(regions)
    # A softmax over no region is NaN.
    empty = ~region_mask & region_mask.any(dim=-1, keepdim=True)
    if block_entries is None:
        block_entries = CPU_BLOCK_ENTRIES if regions.device.type == "cpu" else BLOCK_ENTRIES
    rows = max(1, block_entries // max(1, empty.numel()))
    return _BlockwiseScores.apply(sentences, regions, empty, temperature, rows)


def sentence_keys(
    tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"], *, sentences: int
) -> Int[Tensor, "batch sentences"]:
    """A 64-bit key of each sentence's token ids: equal keys say the same words in the same order.

    Args:
        tokens: token ids.
        token_mask: k >= 1 is a token of the k-th sentence.
        sentences: number of columns; a sentence without tokens gets the key 0.

    Examples:
        >>> tokens = torch.tensor([[7, 8, 9, 7, 8, 0]])
        >>> mask = torch.tensor([[1, 1, 2, 3, 3, 0]])
        >>> first, second, third = sentence_keys(tokens, mask, sentences=3)[0].tolist()
        >>> first == third, first == second
        (True, False)
    """
    index = token_mask.clamp_min(0).long()
    column = torch.arange(tokens.shape[1], device=tokens.device).expand_as(index)
    size = max(sentences, int(index.max()) if index.numel() else 0) + 1
    first = torch.full((len(index), size), tokens.shape[1], device=tokens.device)
    first = first.scatter_reduce(1, index, column, "amin")
    # Mix the token with its place, then add over the sentence; 64-bit integers wrap around.
    mixed = (tokens.long() + 1) * 0x2545F4914F6CDD1D + (column - first.gather(1, index)) * 0x1B873593CC9E2D51
    mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653
    mixed = mixed ^ (mixed >> 32)
    keys = torch.zeros((len(index), size), dtype=torch.long, device=tokens.device)
    return keys.scatter_add(1, index, mixed)[:, 1 : sentences + 1]


def said_by(
    sentence_mask: Bool[Tensor, "batch sentences"], keys: Int[Tensor, "batch sentences"]
) -> Bool[Tensor, "valid batch"]:
    """Which reports say each valid sentence word for word, its own included.

    Examples:
        >>> said_by(torch.ones(2, 2) > 0, torch.tensor([[5, 6], [5, 7]])).tolist()
        [[True, True], [True, False], [True, True], [False, True]]
    """
    own_key = keys[sentence_mask]
    said = torch.zeros(len(own_key), len(keys), dtype=torch.bool, device=keys.device)
    for column in range(keys.shape[1]):
        said |= (own_key[:, None] == keys[:, column]) & sentence_mask[:, column]
    return said


def sentence_region_loss(
    sentences: Float[Tensor, "batch sentences dim"],
    regions: Float[Tensor, "batch regions dim"],
    sentence_mask: Bool[Tensor, "batch sentences"],
    region_mask: Bool[Tensor, "batch regions"],
    positives: Float[Tensor, "batch batch"],
    keys: Int[Tensor, "batch sentences"] | None = None,
    *,
    scale: Float[Tensor, ""] | float,
    temperature: float = 0.1,
    false_negatives: FalseNegatives = "soft",
    shared_sentences: SharedSentences = "ignore",
    block_entries: int | None = None,
) -> Float[Tensor, ""]:
    """Each sentence must find its own image among all images of the batch, by its best regions.

    ``L = (1/M) Σ_m H_m``, ``H_m = −Σ_b P_mb log softmax_b(s · score_mb)``

    Notation: ``M`` counts the valid sentences of all reports; ``score`` is
    :func:`sentence_region_scores`; ``s`` is ``scale``; ``P_m`` is the column of ``positives`` of the
    sentence's report under the rules ``false_negatives`` and ``shared_sentences``. Without any sentence
    the loss is 0.

    Args:
        sentences: one vector a sentence.
        regions: one vector a region, of the same width.
        sentence_mask: True where a sentence is real.
        region_mask: True where a region sees the film.
        positives: how far text j describes image i, in [0, 1].
        keys: equal where two sentences say the same words; see :func:`sentence_keys`.
        scale: inverse temperature of the contrast.
        temperature: τ of the attention over regions.
        false_negatives: what becomes of other images that the sentence describes; see
            :func:`medvl.objectives.contrast.logit_mask_and_targets`.
        shared_sentences: what becomes of other images whose report says the sentence word for word:
            ``ignore`` asks ``positives`` alone, ``mask`` leaves them out of the softmax, ``positive``
            counts them as ``positives = 1``. Without ``keys`` all three are ``ignore``.
        block_entries: sentence × image × region entries held at once; None suits the device.

    Raises:
        ConfigError: an unknown ``false_negatives``.

    Examples:
        >>> same = torch.ones(4, 3, 2), torch.ones(4, 9, 2)
        >>> real = torch.ones(4, 3) > 0, torch.ones(4, 9) > 0
        >>> round(sentence_region_loss(*same, *real, torch.eye(4), scale=10.0).item(), 6)  # ln 4
        1.386294
    """
    flat = sentences[sentence_mask]
    logits = scale * sentence_region_scores(
        flat, regions, region_mask, temperature=temperature, block_entries=block_entries
    )
    report = sentence_mask.nonzero(as_tuple=True)[0]
    own = report[:, None] == torch.arange(len(regions), device=report.device)
    right = positives.to(logits.dtype).T[report]
    masked = torch.zeros_like(own)
    if keys is not None and shared_sentences != "ignore":
        said = said_by(sentence_mask, keys)
        right = right.masked_fill(said, 1.0 if shared_sentences == "positive" else 0.0)
        masked = masked if shared_sentences == "positive" else said & ~own
    left_out, targets = logit_mask_and_targets(right, own, mode=false_negatives)
    losses = cross_entropy(logits, left_out | masked, targets)
    return losses.sum() / max(1, len(losses))
