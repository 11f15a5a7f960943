"""The objective ``organs``: each part of the body is contrasted with the sentences about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import LogitScale, clip_loss, unit
from medvl.objectives.options import FalseNegatives, check_numbers, false_negatives_mode
from medvl.objectives.parts import OrganPool, normal_parts, text_parts
from medvl.objectives.targets import as_positives

__all__ = ["OrganContrast", "Organs", "organ_loss"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.002, 0.5
"""Range of the organs' learned temperature. The source begins at 0.001, where exp(1/τ) leaves double
precision."""


@dataclass(frozen=True)
class PartPositives:
    """:class:`medvl.features.Positives` of the rows ``index``, for one part.

    ``P = 1`` where both are normal there or say the same of it, else that of ``base``.
    """

    base: Positives
    index: Int[Tensor, " chosen"]
    keys: Int[Tensor, " chosen"]
    normal: Bool[Tensor, " chosen"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows chosen"]:
        """Return rows ``start`` to ``stop``."""
        first, last = int(self.index[start]), int(self.index[start:stop][-1])
        return self._with_part(start, stop, self.base.rows(first, last + 1), first)

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns chosen"]:
        """Return columns ``start`` to ``stop``, transposed."""
        first, last = int(self.index[start]), int(self.index[start:stop][-1])
        return self._with_part(start, stop, self.base.columns(first, last + 1), first)

    def _with_part(
        self, start: int, stop: int, block: Float[Tensor, "span batch"], first: int
    ) -> Float[Tensor, "rows chosen"]:
        part = slice(start, stop)
        base = block[self.index[part] - first][:, self.index]
        same = (self.keys[part, None] == self.keys) | (self.normal[part, None] & self.normal)
        return base.masked_fill(same, 1.0)

    def all_equal(self, *, block_rows: int = 1024) -> bool:
        """Say whether each text describes each image."""
        blocks = range(0, len(self), block_rows)
        return all(bool((self.rows(i, min(i + block_rows, len(self))) >= 1).all()) for i in blocks)


def organ_loss(
    image_parts: Float[Tensor, "batch parts dim"],
    report_parts: Float[Tensor, "batch parts dim"],
    eligible: Bool[Tensor, "batch parts"],
    positives: Float[Tensor, "batch batch"] | Positives,
    *,
    keys: Int[Tensor, "batch parts"],
    normal: Bool[Tensor, "batch parts"],
    scale: Float[Tensor, ""] | float,
    false_negatives: FalseNegatives = "multi",
) -> Float[Tensor, ""]:
    """Contrast the parts of images with what reports say of them, each part for itself.

    ``L = Σ_o L_o``, ``L_o = −½·mean_i[Σ_j P_ij log softmax_j(s·V Tᵀ) + Σ_j P_ij log softmax_j(s·T Vᵀ)]``

    Notation: ``V``, ``T`` are the normalised ``image_parts`` and ``report_parts`` of part o over the rows
    that are ``eligible`` there; ``s`` is ``scale``; ``P_ij ∝ 1`` where i = j, both are ``normal``, both
    ``keys`` are equal, or ``positives`` is 1, and the row sums of P are 1. That is ``multi``; the other rules
    for false negatives are those of :func:`medvl.objectives.contrast.logit_mask_and_targets` over the same
    equalities.

    A part with fewer than two eligible rows contributes nothing, nor does one whose targets are all equal (no
    row is abnormal there, say), except that ``none`` knows no equalities. Without any such part the loss is a
    zero that has a gradient.

    Args:
        image_parts: one vector a part of each image.
        report_parts: one vector a part of each report.
        eligible: True where the image shows the part and the report speaks of it.
        positives: how far text j describes image i, in [0, 1].
        keys: equal where two reports say the same of a part.
        normal: True where a part is known to be normal.
        scale: inverse temperature.
        false_negatives: what becomes of other reports that say the same of the part.

    Examples:
        >>> constant = torch.ones(3, 1, 4)
        >>> said, keys = torch.ones(3, 1) > 0, torch.arange(3)[:, None]
        >>> normal = torch.tensor([[True], [True], [False]])
        >>> loss = organ_loss(constant, constant, said, torch.eye(3), keys=keys, normal=normal, scale=14.3)
        >>> round(loss.item(), 6)  # ln 3
        1.098612

    Source: Shui et al. 2025 (fVLM), arXiv 2501.14548; equality by template there, by findings here.
    """
    base = as_positives(positives)
    # An empty sum, so that the total is a tensor with a gradient whatever the batch holds.
    total = unit(image_parts[:0]).sum() + unit(report_parts[:0]).sum()
    for part in range(eligible.shape[1]):
        index = eligible[:, part].nonzero()[:, 0]
        if len(index) < 2:
            continue
        equal = PartPositives(base, index, keys[index, part], normal[index, part])
        if false_negatives != "none" and equal.all_equal():
            continue
        total = total + clip_loss(
            image_parts[index, part],
            report_parts[index, part],
            equal,
            scale=scale,
            false_negatives=false_negatives,
        )
    return total


class OrganContrast(nn.Module):
    """The learned parts of :func:`organ_loss`: queries, projections and the temperature.

    Args:
        dim: width of the features.
        parts: parts of the body.
        heads: of the attention.
        temperature: initial τ, in [0.002, 0.5].
        finding_parts: part of each finding, 0 for none.
        false_negatives: what becomes of other reports that say the same of a part.

    Raises:
        ConfigError: see :class:`Organs`.
    """

    finding_parts: Int[Tensor, " labels"]

    def __init__(
        self,
        dim: int,
        *,
        parts: int,
        heads: int,
        temperature: float,
        finding_parts: Sequence[int],
        false_negatives: str,
    ) -> None:
        super().__init__()
        check_numbers(1, parts=parts, heads=heads)
        check_numbers(MIN_TEMPERATURE, organ_temperature=temperature)
        if not temperature <= MAX_TEMPERATURE:
            raise ConfigError(f"organ_temperature is {temperature}.", hint="Allowed: 0.002 to 0.5.")
        self.parts = parts
        self.false_negatives = false_negatives_mode(false_negatives)
        self.pool = OrganPool(parts=parts, dim=dim, heads=heads)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        # Not a part of the state: it belongs to the label columns of the store, not to what was learned.
        self.register_buffer(
            "finding_parts", torch.tensor(list(finding_parts), dtype=torch.long), persistent=False
        )

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> Float[Tensor, ""]:
        """Return the sum over the parts."""
        inside = image_features.region_mask[..., None].expand(-1, -1, self.parts)
        if image_features.region_parts is not None:
            if image_features.region_parts.shape[-1] != self.parts:
                raise ConfigError(
                    f"the regions are assigned to {image_features.region_parts.shape[-1]} parts, "
                    f"the objective has {self.parts}.",
                    hint="Set objective.options.parts to the former.",
                )
            inside = inside & image_features.region_parts
        texts = text_parts(text_features, parts=self.parts)
        findings, known = text_features.findings, self.finding_parts
        if findings is None:
            findings, known = image_features.pooled.new_zeros(len(texts.said), 0), known[:0]
        normal = normal_parts(findings, known, parts=self.parts, states=texts.states)
        return organ_loss(
            self.pool(image_features.regions, inside),
            texts.vectors,
            texts.said & inside.any(dim=1),
            positives,
            keys=texts.keys,
            normal=normal,
            scale=1 / self.temperature,
            false_negatives=self.false_negatives,
        )

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the temperature back into its range; call it after each optimiser step."""
        self.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)


class Organs(AlignmentObjective):
    """Whole cases, and each part of the body with the sentences about it: ``L = λ₁ CLIP + λ₂ Σ_o L_o``.

    ``L_o`` is :func:`organ_loss` between :class:`medvl.objectives.parts.OrganPool` and
    :func:`medvl.objectives.parts.text_parts`.

    Args:
        dim: width of the features.
        instance_weight: λ₁; fVLM has no such term, and its pooled vectors are not trained.
        organ_weight: λ₂.
        temperature: initial temperature of the contrast of whole cases.
        organ_temperature: initial τ of the organs, learned within [0.002, 0.5].
        parts: parts of the body: 7 for chest radiographs, 18 for CT (``medvl.anatomy.PARTS``).
        heads: of the attention of a part's query.
        finding_parts: part of each label column, 0 for none; a training run fills it. Without it, and without
            ``sentence_states``, no part counts as normal, and only equal sentences and the batch's positives
            make two cases equal.
        false_negatives: what becomes of other reports that are right answers, in both contrasts.

    Raises:
        ConfigError: an unknown ``false_negatives``, a negative weight, a temperature outside its range, no
            part, or ``heads`` that do not divide ``dim``.

    Source: fVLM, Shui et al. 2025, arXiv 2501.14548.
    """

    needs_local = True
    needs_parts = True

    def __init__(
        self,
        dim: int,
        *,
        instance_weight: float = 1.0,
        organ_weight: float = 1.0,
        temperature: float = 0.07,
        organ_temperature: float = 0.07,
        parts: int = 7,
        heads: int = 4,
        finding_parts: Sequence[int] = (),
        false_negatives: str = "multi",
    ) -> None:
        super().__init__()
        check_numbers(0.0, instance_weight=instance_weight, organ_weight=organ_weight)
        self.weights = {"instance": instance_weight, "organs": organ_weight}
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)
        self.organs = OrganContrast(
            dim,
            parts=parts,
            heads=heads,
            temperature=organ_temperature,
            finding_parts=finding_parts,
            false_negatives=false_negatives,
        )

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch and its weighted terms."""
        # Autocast would bring the products back to half precision.
        with full_precision(image_features.pooled.device):
            return weighted(self._terms(image_features, text_features, positives), self.weights)

    def _terms(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> dict[str, Float[Tensor, ""]]:
        instance = clip_loss(
            image_features.pooled,
            text_features.pooled,
            positives,
            scale=self.scale(),
            false_negatives=self.false_negatives,
        )
        return {"instance": instance, "organs": self.organs(image_features, text_features, positives)}
