"""The objective ``medvista``: whole cases, organs, and a bank of reports that mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medvl.features import ImageFeatures, Positives, TextFeatures
from medvl.objectives.contrast import clip_loss
from medvl.objectives.options import check_choice, check_numbers
from medvl.objectives.organs import Organs
from medvl.objectives.targets import as_positives

__all__ = ["Medvista", "bank_loss"]


@dataclass(frozen=True)
class _Others:
    """1 where ``base`` is 0: what must leave the softmax so that only right answers stay."""

    base: Positives

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop``."""
        return (self.base.rows(start, stop) <= 0).float()

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop``, transposed."""
        return (self.base.columns(start, stop) <= 0).float()


def bank_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    positives: Float[Tensor, "batch batch"] | Positives,
    *,
    scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """An image must find some of the texts that mean what its own does.

    ``L = ½·mean_i[−log(Σ_{j∈{i}∪N(i)} e^{s·S_ij} / Σ_j e^{s·S_ij})]`` + the same of Sᵀ

    Notation: ``S`` holds the cosines of ``images`` and ``texts``; ``s`` is ``scale``; ``N(i)`` are the j with
    ``positives_ij > 0``. The logarithm of the quotient is the plain contrast minus the contrast in which only
    the right answers are left: both are :func:`medvl.objectives.contrast.clip_loss`.

    Examples:
        >>> import torch
        >>> images, texts = torch.randn(5, 3), torch.randn(5, 3)
        >>> bool(bank_loss(images, texts, torch.ones(5, 5), scale=10.0).abs() < 1e-5)  # everything is right
        True

    Source: our reading of the semantic matching bank of MedVista3D (arXiv 2509.03800); it publishes no
    formula.
    """
    others = _Others(as_positives(positives))
    everything = clip_loss(images, texts, others, scale=scale, false_negatives="none")
    return everything - clip_loss(images, texts, others, scale=scale, false_negatives="mask")


class Medvista(Organs):
    """Global, organ-wise and bank-wise alignment: ``L = λ₁ CLIP + λ₂ Σ_o L_o + λ₃ bank``.

    RSMB-style: MedVista3D publishes neither a formula nor code of its Radiology Semantic Matching Bank, and
    this is our reading of it. The organs are :func:`medvl.objectives.organs.organ_loss`, the bank
    :func:`bank_loss` over the positives above 0; give the recipe ``positives: bank``, whose entries are a
    run's own reports.

    Args:
        dim: width of the features.
        instance_weight: λ₁.
        organ_weight: λ₂.
        bank_weight: λ₃.
        bank_targets: ``any``: one of the right answers is enough (:func:`bank_loss`); ``soft``: each has its
            share, in proportion to the positives.
        temperature: initial temperature of the contrasts of whole cases.
        organ_temperature: initial τ of the organs, learned within [0.002, 0.5].
        parts: parts of the body.
        heads: of the attention of a part's query.
        finding_parts: part of each label column, 0 for none; a training run fills it.
        false_negatives: what becomes of other reports that are right answers, in the first two terms.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``bank_targets``, a negative weight, a temperature
            outside its range, no part, or ``heads`` that do not divide ``dim``.

    Source: our reading of arXiv 2509.03800.
    """

    def __init__(
        self,
        dim: int,
        *,
        instance_weight: float = 1.0,
        organ_weight: float = 1.0,
        bank_weight: float = 1.0,
        bank_targets: str = "any",
        temperature: float = 0.07,
        organ_temperature: float = 0.07,
        parts: int = 7,
        heads: int = 4,
        finding_parts: Sequence[int] = (),
        false_negatives: str = "multi",
    ) -> None:
        super().__init__(
            dim,
            instance_weight=instance_weight,
            organ_weight=organ_weight,
            temperature=temperature,
            organ_temperature=organ_temperature,
            parts=parts,
            heads=heads,
            finding_parts=finding_parts,
            false_negatives=false_negatives,
        )
        check_numbers(0.0, bank_weight=bank_weight)
        check_choice("bank_targets", bank_targets, ("any", "soft"))
        self.weights["bank"] = bank_weight
        self.bank_targets = bank_targets

    def _terms(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> dict[str, Float[Tensor, ""]]:
        images, texts, scale = image_features.pooled, text_features.pooled, self.scale()
        if self.bank_targets == "any":
            bank = bank_loss(images, texts, positives, scale=scale)
        else:
            bank = clip_loss(images, texts, positives, scale=scale, false_negatives="soft")
        return {**super()._terms(image_features, text_features, positives), "bank": bank}
