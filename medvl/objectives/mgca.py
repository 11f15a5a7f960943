"""The objective ``mgca``: instance, token and prototype alignment of MGCA."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import clip_loss
from medvl.objectives.options import check_numbers, false_negatives_mode, patch_context_mode
from medvl.objectives.prototypes import Prototypes, prototype_alignment
from medvl.objectives.tokens import token_alignment

__all__ = ["Mgca"]


class Mgca(AlignmentObjective):
    """Multi-granularity cross-modal alignment, ``L = λ₁ ITA + λ₂ CTA + λ₃ CPA``.

    ITA is the *sum* of both directions' cross-entropies at a fixed temperature; CTA is
    :func:`medvl.objectives.tokens.token_alignment`; CPA is
    :func:`medvl.objectives.prototypes.prototype_alignment`.

    Args:
        dim: width of the features.
        instance_weight: λ₁.
        token_weight: λ₂.
        prototype_weight: λ₃.
        instance_temperature: τ of ITA.
        token_temperature: τ of CTA.
        prototype_temperature: τ of CPA.
        prototypes: number of prototypes K.
        epsilon: entropy of the Sinkhorn assignment.
        iterations: Sinkhorn iterations.
        frozen_epochs: epochs before the prototypes move.
        patch_context: ``raw`` (the authors' choice for a ViT), ``unit`` (for a CNN) or ``auto``.
        false_negatives: what becomes of other texts that describe an image, in ITA; the paper has none.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``patch_context``, a negative weight, or a temperature
            below 0.01.

    Source: Wang et al. 2022, arXiv 2210.06044.
    """

    needs_local = True

    def __init__(
        self,
        dim: int,
        *,
        instance_weight: float = 1.0,
        token_weight: float = 1.0,
        prototype_weight: float = 1.0,
        instance_temperature: float = 0.07,
        token_temperature: float = 0.1,
        prototype_temperature: float = 0.2,
        prototypes: int = 500,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen_epochs: int = 1,
        patch_context: str = "auto",
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, instance_weight=instance_weight, token_weight=token_weight)
        check_numbers(0.0, prototype_weight=prototype_weight, frozen_epochs=frozen_epochs)
        check_numbers(0.01, instance_temperature=instance_temperature, token_temperature=token_temperature)
        check_numbers(0.01, prototype_temperature=prototype_temperature, epsilon=epsilon)
        check_numbers(1, prototypes=prototypes, iterations=iterations)
        self.weights = {
            "instance": instance_weight,
            "token": token_weight,
            "prototype": prototype_weight,
        }
        self.instance_temperature = instance_temperature
        self.token_temperature = token_temperature
        self.prototype_temperature = prototype_temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.patch_context = patch_context_mode(patch_context)
        self.false_negatives = false_negatives_mode(false_negatives)
        self.prototypes = Prototypes(count=prototypes, dim=dim, frozen_epochs=frozen_epochs)

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch and its three weighted terms."""
        # Autocast would bring the products back to half precision.
        with full_precision(image_features.pooled.device):
            instance = 2 * clip_loss(
                image_features.pooled,
                text_features.pooled,
                positives,
                scale=1 / self.instance_temperature,
                false_negatives=self.false_negatives,
            )
            token = token_alignment(
                text_features.words,
                image_features.regions,
                text_features.word_mask,
                image_features.region_mask,
                text_features.word_weights,
                image_features.region_weights,
                temperature=self.token_temperature,
                patch_context=self.patch_context,
            )
            prototype = prototype_alignment(
                image_features.pooled,
                text_features.pooled,
                self.prototypes(),
                temperature=self.prototype_temperature,
                epsilon=self.epsilon,
                iterations=self.iterations,
            )
        return weighted({"instance": instance, "token": token, "prototype": prototype}, self.weights)
