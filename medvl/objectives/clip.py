"""The objective ``clip``: one contrast of whole images with whole texts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.options import false_negatives_mode

__all__ = ["Clip"]


class Clip(AlignmentObjective):
    """Symmetric image–text contrast with a learned scale.

    Args:
        dim: width of the features; no parameter depends on it here.
        temperature: initial temperature, the inverse of the learned scale.
        false_negatives: what becomes of other texts that describe an image.

    Raises:
        ConfigError: an unknown ``false_negatives``, or a ``temperature`` below 0.01.

    Source: Radford et al. 2021, arXiv 2103.00020.
    """

    def __init__(self, dim: int, *, temperature: float = 0.07, false_negatives: str = "none") -> None:
        super().__init__()
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch."""
        loss = clip_loss(
            image_features.pooled,
            text_features.pooled,
            positives,
            scale=self.scale(),
            false_negatives=self.false_negatives,
        )
        return LossTerms(loss, {"instance": loss.detach()})
