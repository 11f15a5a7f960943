"""Contrast of whole images with whole texts: similarity, targets, cross-entropy, the learned scale.

Everything here normalises its own input, so a forgotten normalisation cannot happen, and computes
in at least single precision, because ``exp(100)`` does not exist in half precision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.features import Positives
from medvl.objectives.chunked import right_answers, two_way_contrast
from medvl.objectives.options import FalseNegatives, check_numbers, false_negatives_mode
from medvl.objectives.targets import as_positives

__all__ = [
    "MAX_LOG_SCALE",
    "LogitScale",
    "clip_loss",
    "cross_entropy",
    "false_negative_targets",
    "logit_mask_and_targets",
    "unit",
]

MAX_LOG_SCALE = math.log(100.0)


def unit(vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Divide each vector by its Euclidean length, in single precision or better.

    Examples:
        >>> unit(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def logit_mask_and_targets(
    positives: Float[Tensor, "rows columns"],
    own: Bool[Tensor, "rows columns"],
    *,
    mode: FalseNegatives,
) -> tuple[Bool[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """Turn a matrix of positives into the logits to leave out and the target of each row.

    ======== ============================================ ==============================
    mode     left out of the softmax                      target of row i
    ======== ============================================ ==============================
    none     nothing                                      its own column
    mask     columns with ``positives = 1``, not its own  its own column
    multi    nothing                                      uniform where ``positives = 1``
    soft     nothing                                      ``positives`` over its row sum
    ======== ============================================ ==============================

    Args:
        positives: how far column j is a right answer to row i, in [0, 1].
        own: True where column j is the partner of row i, one a row; counts as ``positives = 1``.
        mode: what becomes of the other right answers.

    Raises:
        ConfigError: an unknown ``mode``.

    Examples:
        >>> twins = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
        >>> logit_mask_and_targets(twins, torch.eye(3) > 0, mode="soft")[1][0].tolist()
        [0.4000000059604645, 0.4000000059604645, 0.20000000298023224]
        >>> logit_mask_and_targets(twins, torch.eye(3) > 0, mode="mask")[0][0].tolist()
        [False, True, False]
    """
    left_out, right = right_answers(positives, own, mode=mode)
    left_out = torch.zeros_like(own) if left_out is None else left_out
    return left_out, right / right.sum(dim=-1, keepdim=True)


def false_negative_targets(
    positives: Float[Tensor, "batch batch"], *, mode: FalseNegatives
) -> tuple[Bool[Tensor, "batch batch"], Float[Tensor, "batch batch"]]:
    """:func:`logit_mask_and_targets` for paired rows and columns: row i owns column i."""
    own = torch.eye(len(positives), dtype=torch.bool, device=positives.device)
    return logit_mask_and_targets(positives, own, mode=mode)


def cross_entropy(
    logits: Float[Tensor, "rows columns"],
    left_out: Bool[Tensor, "rows columns"],
    targets: Float[Tensor, "rows columns"],
) -> Float[Tensor, " rows"]:
    """The cross-entropy of each row with a target distribution.

    ``H_i = −Σ_j P_ij log softmax_j(Z_i)``, the softmax running over the columns not left out.

    Notation: ``Z`` is ``logits``, ``P`` is ``targets``, which is 0 wherever ``left_out`` is True.

    Examples:
        >>> none_left_out = torch.zeros(1, 4, dtype=torch.bool)
        >>> round(cross_entropy(torch.ones(1, 4), none_left_out, torch.eye(4)[:1]).item(), 6)
        1.386294
    """
    log_p = logits.masked_fill(left_out, -math.inf).log_softmax(dim=-1)
    # 0 · (−inf) would be NaN, in the value and in the gradient.
    return -(targets * log_p.masked_fill(targets == 0, 0.0)).sum(dim=-1)


def clip_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    positives: Float[Tensor, "batch batch"] | Positives,
    *,
    scale: Float[Tensor, ""] | float,
    image_weight: float = 0.5,
    false_negatives: FalseNegatives = "none",
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Contrast of paired images and texts in both directions.

    ``L = λ·CE(s·V Tᵀ) + (1−λ)·CE(s·T Vᵀ)``

    Notation: ``V``, ``T`` are the normalised ``images``, ``texts``; ``s`` is ``scale``; λ is
    ``image_weight``; the target of row i is column i unless ``false_negatives`` says otherwise. Memory
    grows with the batch, not with its square; gradients are exact, that of ``scale`` included.

    Args:
        images: one vector an image, of any length.
        texts: one vector a text, of any length.
        positives: how far text j describes image i, in [0, 1]; not asked where ``false_negatives`` is
            ``none``.
        scale: inverse temperature, at most 600.
        image_weight: of the direction in which an image looks for its text.
        false_negatives: what becomes of other texts that describe the image; see
            :func:`logit_mask_and_targets`.
        block_rows: rows of logits held at once; None suits the device.

    Raises:
        ConfigError: an unknown ``false_negatives`` or a ``scale`` above 600.

    Examples:
        >>> same = torch.ones(8, 3)
        >>> round(clip_loss(same, same, torch.eye(8), scale=14.3).item(), 4)  # ln 8
        2.0794

    Source: Radford et al. 2021, arXiv 2103.00020, fig. 3.
    """
    mode = false_negatives_mode(false_negatives)
    dtype = torch.promote_types(images.dtype, torch.float32)
    return two_way_contrast(
        images.to(dtype),
        texts.to(dtype),
        scale=torch.as_tensor(scale, dtype=dtype, device=images.device),
        positives=None if mode == "none" else as_positives(positives),
        image_weight=image_weight,
        mode=mode,
        block_rows=block_rows,
    )


class LogitScale(nn.Module):
    """A learned inverse temperature ``s = exp(ℓ)``, at most 100.

    Args:
        temperature: the initial ``1 / s``, at least 0.01.

    Raises:
        ConfigError: a smaller ``temperature``.

    Examples:
        >>> round(LogitScale(temperature=0.07)().item(), 4)
        14.2857
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        check_numbers(0.01, temperature=temperature)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self) -> Float[Tensor, ""]:
        """Return ``s``."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring ``ℓ`` back to at most ``ln 100``; call it after each optimiser step."""
        self.log_scale.clamp_(max=MAX_LOG_SCALE)
