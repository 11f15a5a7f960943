"""The objective ``siglip``: every image–text pair of the batch judged on its own, right or wrong."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import block_answers, blocks, full_precision
from medvl.objectives.contrast import LogitScale, unit
from medvl.objectives.options import FalseNegatives, check_numbers, false_negatives_mode
from medvl.objectives.targets import as_positives

__all__ = ["Siglip", "siglip_loss"]


class _PairwiseLogistic(torch.autograd.Function):
    """``(1/B) Σ_ij [sp(l_ij) − W_ij l_ij]`` over the pairs not left out, ``l = s·V Tᵀ + β``.

    Each entry's slope, ``σ(l_ij) − W_ij``, needs no other entry: value and gradient of a block are taken
    together, and nothing of the block is kept or computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Float[Tensor, "batch dim"],
        texts: Float[Tensor, "batch dim"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""],
        positives: Positives | None,
        mode: FalseNegatives,
        block_rows: int | None,
    ) -> Float[Tensor, ""]:
        size, device = len(images), images.device
        wanted = ctx.needs_input_grad[:4]
        losses = torch.zeros(size, dtype=torch.float64, device=device)
        bias_slope = torch.zeros((), dtype=torch.float64, device=device)
        image_slope, text_slope = torch.empty_like(images), torch.zeros_like(texts)
        # The threshold past which softplus is the identity must lie below the precision.
        threshold = 40.0 if images.dtype == torch.float64 else 20.0
        for part in blocks(size, block_rows, columns=size, device=device):
            logits = torch.addmm(bias, images[part] * scale, texts.T)
            left_out, right = None, None
            if mode != "none":
                left_out, right = block_answers(positives, part, logits, mode=mode)  # type: ignore[arg-type]
            penalty = F.softplus(logits, threshold=threshold)
            penalty = penalty if left_out is None else penalty.masked_fill_(left_out, 0.0)
            gain = logits[:, part].diagonal() if right is None else (logits * right).sum(dim=1)
            losses[part] = penalty.sum(dim=1).double() - gain
            if not any(wanted):
                continue
            slope = logits.sigmoid_()
            slope = slope if left_out is None else slope.masked_fill_(left_out, 0.0)
            if right is None:
                slope[:, part].diagonal().sub_(1.0)
            else:
                slope.sub_(right)
            bias_slope += slope.sum()
            if wanted[0] or wanted[2]:
                torch.mm(slope, texts, out=image_slope[part])
            if wanted[1]:
                text_slope.addmm_(slope.T, images[part])
        slopes = [
            None,
            None,
            torch.linalg.vecdot(images, image_slope).sum() / size if wanted[2] else None,
            (bias_slope / size).to(images.dtype) if wanted[3] else None,
        ]
        if wanted[0]:
            slopes[0] = image_slope.mul_(scale / size)
        if wanted[1]:
            slopes[1] = text_slope.mul_(scale / size)
        ctx.save_for_backward(*slopes)
        return losses.mean().to(images.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        slopes = (None if slope is None else slope * upstream for slope in ctx.saved_tensors)
        return *slopes, *[None] * 3


def siglip_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    positives: Float[Tensor, "batch batch"] | Positives,
    *,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    false_negatives: FalseNegatives = "none",
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Judge each pair of an image and a text on its own.

    ``L = (1/B) Σ_ij [sp(l_ij) − W_ij l_ij]``, ``l_ij = s·v_i·t_j + β``, which for ``W_ij`` in {0, 1} is
    ``−(1/B) Σ_ij ln σ(z_ij l_ij)`` with ``z = 1`` where ``W = 1`` and −1 elsewhere.

    Notation: ``v``, ``t`` are the normalised ``images``, ``texts``; ``s`` is ``scale``; ``β`` is ``bias``;
    ``sp(x) = ln(1 + e^x)``. ``W`` is 1 on the diagonal and 0 elsewhere, unless ``false_negatives`` says
    otherwise: ``multi`` also counts ``positives = 1``; ``mask`` leaves these pairs out of the sum; ``soft``
    takes ``W = positives``: the pair is right with weight W and wrong with weight 1 − W. Memory grows with
    the batch, not with its square.

    Args:
        images: one vector an image, of any length.
        texts: one vector a text, of any length.
        positives: how far text j describes image i, in [0, 1]; not asked where ``false_negatives`` is
            ``none``.
        scale: inverse temperature.
        bias: the logit of an orthogonal pair.
        false_negatives: what becomes of other texts that describe the image.
        block_rows: rows of logits held at once; None suits the device.

    Raises:
        ConfigError: an unknown ``false_negatives``.

    Examples:
        >>> same = torch.ones(4, 3)
        >>> round(siglip_loss(same, same, torch.eye(4), scale=10.0, bias=-10.0).item(), 4)  # 4 ln 2
        2.7726

    Source: Zhai et al. 2023, arXiv 2303.15343, eq. (1).
    """
    mode = false_negatives_mode(false_negatives)
    with full_precision(images.device):
        images, texts = unit(images), unit(texts)
        like: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
        inputs = [images, texts, torch.as_tensor(scale, **like), torch.as_tensor(bias, **like)]
        if not torch.is_grad_enabled():
            # Otherwise a function takes the gradients of what requires them all the same.
            inputs = [tensor.detach() for tensor in inputs]
        return _PairwiseLogistic.apply(
            *inputs,
            None if mode == "none" else as_positives(positives),
            mode,
            block_rows,
        )


class Siglip(AlignmentObjective):
    """Pairwise logistic contrast with a learned scale and a learned bias.

    Args:
        dim: width of the features; no parameter depends on it here.
        temperature: initial temperature, the inverse of the learned scale, at least 0.01.
        negative_bias: minus the initial bias: an orthogonal pair starts as wrong with the odds e^10 : 1, as
            most pairs of a batch are.
        false_negatives: what becomes of other texts that describe an image; the paper has none.

    Raises:
        ConfigError: an unknown ``false_negatives``, a negative ``negative_bias``, or a ``temperature`` below
            0.01.

    Source: Zhai et al. 2023, arXiv 2303.15343.
    """

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 0.1,
        negative_bias: float = 10.0,
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, negative_bias=negative_bias)
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)
        self.bias = nn.Parameter(torch.tensor(-float(negative_bias)))

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch."""
        loss = siglip_loss(
            image_features.pooled,
            text_features.pooled,
            positives,
            scale=self.scale(),
            bias=self.bias,
            false_negatives=self.false_negatives,
        )
        return LossTerms(loss, {"instance": loss.detach()})
