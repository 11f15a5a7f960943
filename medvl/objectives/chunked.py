"""The two-way contrast of all pairs by blocks of rows: memory grows with the batch, not with its square."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvl.errors import ConfigError
from medvl.features import Positives
from medvl.objectives.options import FalseNegatives, false_negatives_mode

__all__ = ["block_answers", "blocks", "exponent_dtype", "full_precision", "right_answers", "two_way_contrast"]

# Logits computed at once: 4 MiB in single precision stay near a processor's cache; an accelerator wants
# fewer, larger blocks.
CPU_BLOCK_ENTRIES = 1 << 20
BLOCK_ENTRIES = 1 << 25

# Largest exponents whose sum, and its inverse, are normal numbers.
LARGEST = {torch.float32: 80.0, torch.float64: 690.0}


def blocks(size: int, rows: int | None, *, columns: int, device: torch.device) -> Iterator[slice]:
    """Cut ``size`` rows of ``columns`` entries into slices of ``rows``; None suits the device.

    Examples:
        >>> list(blocks(5, 2, columns=5, device=torch.device("cpu")))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if rows is None:
        entries = CPU_BLOCK_ENTRIES if device.type == "cpu" else BLOCK_ENTRIES
        rows = entries // max(1, columns)
    rows = max(1, rows)
    return (slice(start, min(start + rows, size)) for start in range(0, size, rows))


def right_answers(
    positives: Float[Tensor, "rows columns"],
    own: Bool[Tensor, "rows columns"],
    *,
    mode: FalseNegatives,
) -> tuple[Bool[Tensor, "rows columns"] | None, Float[Tensor, "rows columns"]]:
    """Return the logits to leave out (None: none) and how right each answer is, in [0, 1].

    ======== ============================================ ==============================
    mode     left out                                     right
    ======== ============================================ ==============================
    none     nothing                                      its own column
    mask     columns with ``positives = 1``, not its own  its own column
    multi    nothing                                      1 where ``positives = 1``
    soft     nothing                                      ``positives``
    ======== ============================================ ==============================

    The rule is the same read by rows and by columns.

    Args:
        positives: how far column j is a right answer to row i, in [0, 1].
        own: True where column j is the partner of row i; counts as ``positives = 1``.
        mode: what becomes of the other right answers.

    Raises:
        ConfigError: an unknown ``mode``.
    """
    mode = false_negatives_mode(mode)
    exact = own.to(positives.dtype)
    if mode == "none":
        return None, exact
    # A sum of half-precision findings must still count as the same case.
    same = own | (positives > 1.0 - 1e-3)
    if mode == "mask":
        return same & ~own, exact
    return None, same.to(positives.dtype) if mode == "multi" else torch.maximum(positives, exact)


def block_answers(
    positives: Positives, part: slice, logits: Float[Tensor, "rows batch"], *, mode: FalseNegatives
) -> tuple[Bool[Tensor, "rows batch"] | None, Float[Tensor, "rows batch"]]:
    """Return :func:`right_answers` for a block of rows of a batch in which row i owns column i."""
    columns = torch.arange(len(positives), device=logits.device)
    block = positives.rows(part.start, part.stop).to(logits)
    return right_answers(block, columns[part, None] == columns, mode=mode)


def two_way_contrast(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    *,
    scale: Float[Tensor, ""],
    positives: Positives | None,
    image_weight: float,
    mode: FalseNegatives,
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    """The loss of :func:`medvl.objectives.contrast.clip_loss`, for vectors in single precision or better.

    Args:
        images: one vector an image, of any length.
        texts: one vector a text, of any length.
        scale: inverse temperature, at most 600.
        positives: not asked where ``mode`` is ``none``.
        image_weight: of the direction in which an image looks for its text.
        mode: what becomes of other texts that describe the image.
        block_rows: rows of logits held at once; None suits the device.

    Raises:
        ConfigError: a ``scale`` above 600.

    Examples:
        >>> same = torch.ones(8, 3)
        >>> ten = torch.tensor(10.0)
        >>> loss = two_way_contrast(
        ...     same, same, scale=ten, positives=None, image_weight=0.5, mode="none", block_rows=3
        ... )
        >>> round(loss.item(), 4)  # ln 8
        2.0794
    """
    with full_precision(images.device):
        return _TwoWayContrast.apply(images, texts, scale, positives, image_weight, mode, block_rows)


class _TwoWayContrast(torch.autograd.Function):
    """``λ·CE`` over rows and ``(1−λ)·CE`` over columns of ``Z = s·V Tᵀ`` without ever holding Z.

    With ``E = exp(Z)`` (0 where left out), its row and column sums ``r``, ``c``, and the right answers
    ``W`` with sums ``w``, ``q``:

    ``L = (λ/N) Σ_i (ln r_i − Σ_j W_ij Z_ij / w_i) + ((1−λ)/N) Σ_j (ln c_j − Σ_i W_ij Z_ij / q_j)``,
    ``N ∂L/∂Z_ij = E_ij (λ/r_i + (1−λ)/c_j) − W_ij (λ/w_i + (1−λ)/q_j)``

    ``V``, ``T`` have unit length, so ``|Z| ≤ s``: one exponential of each entry serves both directions,
    without a shift while ``s + ln N`` stays below 80, in double precision above. The backward pass computes
    each block again, unless there is one block only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Float[Tensor, "batch dim"],
        texts: Float[Tensor, "batch dim"],
        scale: Float[Tensor, ""],
        positives: Positives | None,
        image_weight: float,
        mode: FalseNegatives,
        block_rows: int | None,
    ) -> Float[Tensor, ""]:
        size = len(images)
        ctx.parts = list(blocks(size, block_rows, columns=size, device=images.device))
        ctx.positives, ctx.mode, ctx.image_weight = positives, mode, image_weight
        ctx.work = exponent_dtype(float(scale), size=size, dtype=images.dtype)
        images, image_lengths = _unit(images)
        texts, text_lengths = _unit(texts)
        # By row and by column; matches and their weights are those of the right answers.
        sums = torch.zeros(2, size, dtype=torch.float64, device=images.device)
        weights = None if mode == "none" else torch.zeros_like(sums)
        matches = torch.zeros_like(sums[0] if weights is None else sums)
        for part in ctx.parts:
            logits = (images[part] * scale) @ texts.T
            left_out, right = None, None
            if weights is None:
                matches[part] = logits[:, part].diagonal()
            else:
                left_out, right = block_answers(positives, part, logits, mode=mode)  # type: ignore[arg-type]
                _add(matches, part, logits * right)
                _add(weights, part, right)
            exponentials = _exponentials(logits, left_out, ctx.work)
            _add(sums, part, exponentials)
        kept = (exponentials, right) if len(ctx.parts) == 1 else ()
        ctx.lengths = image_lengths, text_lengths
        ctx.save_for_backward(images, texts, scale, sums, weights, *kept)
        by_image, by_text = (sums.log() - (matches if weights is None else matches / weights)).mean(dim=1)
        return (image_weight * by_image + (1 - image_weight) * by_text).to(images.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        images, texts, scale, sums, weights, *kept = ctx.saved_tensors
        with full_precision(images.device):
            return _gradients(ctx, images, texts, scale, sums, weights, kept, upstream)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off, which would bring products back to half precision; free where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def _gradients(
    ctx: Any,
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    sums: Float[Tensor, "2 batch"],
    weights: Float[Tensor, "2 batch"] | None,
    kept: list[Any],
    upstream: Float[Tensor, ""],
) -> tuple[Tensor | None, ...]:
    """Return the gradient of each argument of :class:`_TwoWayContrast`."""
    want_images, want_texts, want_scale, *_ = ctx.needs_input_grad
    slopes = _shares(sums, ctx)
    right_slopes = None if weights is None else _shares(weights, ctx)
    image_slope, text_slope = torch.empty_like(images), torch.zeros_like(texts)
    for part in ctx.parts:
        if kept:
            exponentials, right = kept
            # Out of place: a second backward pass may follow.
            slope = exponentials * (slopes[0][part] + slopes[1])
        else:
            logits = (images[part] * scale) @ texts.T
            left_out, right = None, None
            if right_slopes is not None:
                left_out, right = block_answers(ctx.positives, part, logits, mode=ctx.mode)
            slope = _exponentials(logits, left_out, ctx.work)
            slope.mul_(slopes[0][part] + slopes[1])
        if right_slopes is None:
            slope[:, part].diagonal().sub_(1.0)
        else:
            slope.sub_(right * (right_slopes[0][part] + right_slopes[1]))
        slope = slope.to(images.dtype)
        if want_images or want_scale:
            torch.mm(slope, texts, out=image_slope[part])
        if want_texts:
            text_slope.addmm_(slope.T, images[part])
    factor = upstream / len(images)
    by_length = factor * scale
    along: Any = torch.linalg.vecdot(images, image_slope)[:, None] if want_images or want_scale else None
    by_image = by_text = None
    if want_images:
        by_image = image_slope.addcmul_(images, along, value=-1).mul_(by_length / ctx.lengths[0])
    if want_texts:
        along_text = torch.linalg.vecdot(texts, text_slope)[:, None]
        by_text = text_slope.addcmul_(texts, along_text, value=-1).mul_(by_length / ctx.lengths[1])
    return by_image, by_text, along.sum() * factor if want_scale else None, *[None] * 4


def _unit(vectors: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch 1"]]:
    """The vectors at unit length, and their lengths."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(1e-12)
    return vectors / lengths, lengths


def _add(sums: Float[Tensor, "2 batch"], part: slice, block: Float[Tensor, "rows batch"]) -> None:
    """Add the sums of a block of rows to those by row and by column."""
    sums[0, part] = block.sum(dim=1)
    sums[1] += block.sum(dim=0)


def _shares(
    sums: Float[Tensor, "2 batch"], ctx: Any
) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, " batch"]]:
    """λ over the sum of each row, 1 − λ over that of each column."""
    by_row, by_column = sums.reciprocal().to(ctx.work).unbind()
    return (by_row * ctx.image_weight)[:, None], by_column * (1 - ctx.image_weight)


def _exponentials(
    logits: Float[Tensor, "rows batch"], left_out: Bool[Tensor, "rows batch"] | None, work: torch.dtype
) -> Float[Tensor, "rows batch"]:
    """``exp`` of a block, which it may overwrite."""
    exponentials = logits.exp_() if logits.dtype == work else logits.to(work).exp_()
    return exponentials if left_out is None else exponentials.masked_fill_(left_out, 0.0)


def exponent_dtype(scale: float, *, size: int, dtype: torch.dtype) -> torch.dtype:
    """Return the precision, ``dtype`` or better, whose range holds a sum of ``size`` terms ``exp(±scale)``.

    Raises:
        ConfigError: a ``scale`` above 600.
    """
    largest = abs(scale) + math.log(max(1, size))
    if largest > LARGEST[torch.float64]:
        raise ConfigError(f"the scale of the contrast is {scale:g}.", hint="Allowed: up to 600.")
    return torch.float64 if largest > LARGEST[torch.float32] else dtype
