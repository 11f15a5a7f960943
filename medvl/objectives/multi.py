"""The objective ``multi``, the default: instances, sentences with regions, and prototypes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.options import check_numbers, false_negatives_mode, shared_sentences_mode
from medvl.objectives.prototypes import Prototypes, prototype_alignment
from medvl.objectives.sentences import sentence_region_loss
from medvl.objectives.targets import dense

__all__ = ["Multi"]


class Multi(AlignmentObjective):
    """Three granularities, each contrasted across the whole batch.

    ``L = λ₁ CLIP(soft positives) + λ₂ sentence–region + λ₃ prototypes``

    The terms are :func:`medvl.objectives.contrast.clip_loss`,
    :func:`medvl.objectives.sentences.sentence_region_loss` and
    :func:`medvl.objectives.prototypes.prototype_alignment`. A weight of 0 switches a term off.

    Args:
        dim: width of the features.
        instance_weight: λ₁.
        sentence_weight: λ₂.
        prototype_weight: λ₃.
        temperature: initial temperature of both learned scales.
        region_temperature: temperature of a sentence's attention over regions.
        false_negatives: what becomes of other cases that are right answers, in both contrasts.
        shared_sentences: what becomes of other images whose report says a sentence word for word; see
            :func:`medvl.objectives.sentences.sentence_region_loss`.
        prototypes: number of prototypes K.
        prototype_temperature: τ of the predicted assignment.
        epsilon: entropy of the Sinkhorn assignment.
        iterations: Sinkhorn iterations.
        frozen_epochs: epochs before the prototypes move.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``shared_sentences``, a negative weight, or a
            temperature below 0.01.
    """

    needs_local = True

    def __init__(
        self,
        dim: int,
        *,
        instance_weight: float = 1.0,
        sentence_weight: float = 1.0,
        prototype_weight: float = 0.5,
        temperature: float = 0.07,
        region_temperature: float = 0.1,
        false_negatives: str = "soft",
        shared_sentences: str = "ignore",
        prototypes: int = 128,
        prototype_temperature: float = 0.2,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__()
        check_numbers(0.0, instance_weight=instance_weight, sentence_weight=sentence_weight)
        check_numbers(0.0, prototype_weight=prototype_weight, frozen_epochs=frozen_epochs)
        check_numbers(0.01, region_temperature=region_temperature)
        check_numbers(0.01, prototype_temperature=prototype_temperature, epsilon=epsilon)
        check_numbers(1, prototypes=prototypes, iterations=iterations)
        self.weights = {
            "instance": instance_weight,
            "sentence": sentence_weight,
            "prototype": prototype_weight,
        }
        self.region_temperature = region_temperature
        self.false_negatives = false_negatives_mode(false_negatives)
        self.shared_sentences = shared_sentences_mode(shared_sentences)
        self.prototype_temperature = prototype_temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.scale = LogitScale(temperature=temperature)
        self.sentence_scale = LogitScale(temperature=temperature)
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
            terms = {
                "instance": clip_loss(
                    image_features.pooled,
                    text_features.pooled,
                    positives,
                    scale=self.scale(),
                    false_negatives=self.false_negatives,
                ),
                "sentence": sentence_region_loss(
                    text_features.sentences,
                    image_features.regions,
                    text_features.sentence_mask,
                    image_features.region_mask,
                    dense(positives),
                    text_features.sentence_keys,
                    scale=self.sentence_scale(),
                    temperature=self.region_temperature,
                    false_negatives=self.false_negatives,
                    shared_sentences=self.shared_sentences,
                ),
                "prototype": prototype_alignment(
                    image_features.pooled,
                    text_features.pooled,
                    self.prototypes(),
                    temperature=self.prototype_temperature,
                    epsilon=self.epsilon,
                    iterations=self.iterations,
                ),
            }
        return weighted(terms, self.weights)
