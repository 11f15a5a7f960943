"""The objective ``cxrclip``: two images and two texts of each study, all contrasted with each other."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.options import check_numbers, false_negatives_mode
from medvl.objectives.targets import as_positives
from medvl.objectives.views import ViewPositives, of_view

__all__ = ["Cxrclip"]


class Cxrclip(AlignmentObjective):
    """Contrast of the two images and the two texts of a study, within and across, with one learned scale.

    ``L = ¼ Σ_ab CLIP(I_a, T_b) + λ_I·CLIP(I_1, I_2) + λ_T·CLIP(T_1, T_2)``

    A study with a single image shows it twice, changed at random each time, as the paper does.

    Args:
        dim: width of the features; no parameter depends on it here.
        image_weight: λ_I.
        text_weight: λ_T.
        temperature: initial temperature, the inverse of the learned scale.
        false_negatives: what becomes of another study that fits; the paper has none.

    Raises:
        ConfigError: an unknown ``false_negatives``, a negative weight, or a ``temperature`` below 0.01.

    Source: You et al. 2023, arXiv 2310.13292.
    """

    views = 2

    def __init__(
        self,
        dim: int,
        *,
        image_weight: float = 1.0,
        text_weight: float = 0.5,
        temperature: float = 0.07,
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, image_weight=image_weight, text_weight=text_weight)
        self.weights = {"instance": 1.0, "image": image_weight, "text": text_weight}
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch."""
        whole, scale = as_positives(positives), self.scale()

        def clip(
            rows: Float[Tensor, "batch dim"], columns: Float[Tensor, "batch dim"], one: int, other: int
        ) -> Float[Tensor, ""]:
            return clip_loss(
                of_view(rows, one),
                of_view(columns, other),
                ViewPositives(whole, one, other),
                scale=scale,
                false_negatives=self.false_negatives,
            )

        images, texts = image_features.pooled, text_features.pooled
        across = [clip(images, texts, a, b) for a, b in itertools.product((0, 1), repeat=2)]
        terms = {
            "instance": torch.stack(across).mean(),
            "image": clip(images, images, 0, 1),
            "text": clip(texts, texts, 0, 1),
        }
        return weighted(terms, self.weights)
