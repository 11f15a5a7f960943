"""The objective ``convirt``: one contrast of whole images with whole texts, weighed by direction."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.contrast import clip_loss
from medvl.objectives.options import check_numbers, false_negatives_mode

__all__ = ["Convirt"]


class Convirt(AlignmentObjective):
    """Image–text contrast at a fixed temperature, ``L = λ·CE(S/τ) + (1−λ)·CE(Sᵀ/τ)``.

    Rows of ``S`` are images: λ weighs the search of an image for its text.

    Args:
        dim: width of the features; no parameter depends on it here.
        image_weight: λ, in [0, 1].
        temperature: τ, at least 0.01.
        false_negatives: what becomes of other texts that describe an image; the paper has none.

    Raises:
        ConfigError: an unknown ``false_negatives``, an ``image_weight`` outside [0, 1], or a ``temperature``
            below 0.01.

    Source: Zhang et al. 2020, arXiv 2010.00747, eq. (2)–(4).
    """

    def __init__(
        self,
        dim: int,
        *,
        image_weight: float = 0.75,
        temperature: float = 0.1,
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, image_weight=image_weight)
        if not image_weight <= 1.0:
            raise ConfigError(f"image_weight is {image_weight}.", hint="Allowed: 0 to 1.")
        check_numbers(0.01, temperature=temperature)
        self.image_weight, self.temperature = image_weight, temperature
        self.false_negatives = false_negatives_mode(false_negatives)

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
            scale=1 / self.temperature,
            image_weight=self.image_weight,
            false_negatives=self.false_negatives,
        )
        return LossTerms(loss, {"instance": loss.detach()})
