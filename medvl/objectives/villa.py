"""The objective ``villa``: find the regions that show a finding, then contrast them with its name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.combine import weighted
from medvl.objectives.contrast import LogitScale, clip_loss, unit
from medvl.objectives.options import check_numbers, false_negatives_mode

__all__ = ["AttributeHeads", "Villa", "best_region", "map_regions", "mapping_loss", "region_attribute_loss"]


class AttributeHeads(nn.Module):
    """One small perceptron for each attribute, which turns a region into what it says of that attribute.

    ``cos_iar = cos(h_a(r_i), e_a)``, ``h_a(x) = W₂ᵃ relu(W₁ᵃ x + b₁ᵃ) + b₂ᵃ``

    Notation: ``r`` is ``regions``, normalised; ``e`` is ``attributes``. All heads run as one batched product.

    Args:
        dim: width of regions and attributes, and of the hidden layer.
        count: number of attributes.

    Examples:
        >>> heads = AttributeHeads(8, count=3)
        >>> heads(torch.randn(2, 5, 8), torch.randn(3, 8)).shape
        torch.Size([2, 3, 5])
    """

    def __init__(self, dim: int, *, count: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.first, self.first_bias = drawn(count, dim, dim), drawn(count, 1, dim)
        self.second, self.second_bias = drawn(count, dim, dim), drawn(count, 1, dim)

    def forward(
        self, regions: Float[Tensor, "images regions dim"], attributes: Float[Tensor, "attributes dim"]
    ) -> Float[Tensor, "images attributes regions"]:
        """Return the cosine of each region with each attribute, by the attribute's own head."""
        # a: attributes, n: images × regions, d: width
        flat = unit(regions).flatten(0, 1)
        hidden = (torch.einsum("nd,ade->ane", flat, self.first) + self.first_bias).relu()
        answers = unit(torch.baddbmm(self.second_bias, hidden, self.second))
        cosines = torch.einsum("and,ad->an", answers, unit(attributes))
        return cosines.unflatten(1, regions.shape[:2]).transpose(0, 1)


def best_region(
    cosines: Float[Tensor, "images attributes regions"],
    region_mask: Bool[Tensor, "images regions"],
    *,
    temperature: float = 0.0,
) -> Float[Tensor, "images attributes"]:
    """How well the best region of an image answers to an attribute; with a temperature, a soft best.

    ``c_ia = max_r cos_iar``, or ``Σ_r softmax_r(cos_ia/T)_r cos_iar``

    Through a hard maximum a head learns from the region alone that it happened to prefer at first, and may
    learn such regions by heart; through a soft one it hears of all of them.

    Args:
        cosines: of each region with each attribute.
        region_mask: True where a region sees the film; an image without any counts them all.
        temperature: T; 0 is the maximum.

    Examples:
        >>> cosines = torch.tensor([[[0.0, 0.5]]])
        >>> best_region(cosines, torch.ones(1, 2) > 0).item()
        0.5
        >>> round(best_region(cosines, torch.ones(1, 2) > 0, temperature=0.5).item(), 4)  # e / 2(1 + e)
        0.3655
    """
    empty = (~region_mask & region_mask.any(dim=-1, keepdim=True))[:, None]
    if temperature == 0:
        return cosines.masked_fill(empty, -math.inf).amax(dim=-1)
    attention = (cosines / temperature).masked_fill(empty, -math.inf).softmax(dim=-1)
    return (attention * cosines).sum(dim=-1)


def mapping_loss(
    scores: Float[Tensor, "images attributes"],
    present: Bool[Tensor, "images attributes"],
    *,
    absent: Bool[Tensor, "images attributes"] | None = None,
) -> Float[Tensor, ""]:
    """An image with an attribute must score higher than all images without it.

    ``L = mean over present (i, a) of −log[e^{s_ia} / (e^{s_ia} + Σ_{n: a absent} e^{s_na})]``

    Notation: ``s`` is ``scores``, already divided by the temperature. Without anything present the loss is
    0; an attribute that is absent nowhere contributes 0.

    Args:
        scores: how well the best region of an image answers to an attribute.
        present: True where the image has the attribute.
        absent: True where it is known to lack it; None where everything not present is absent.

    Examples:
        >>> one_of_two = torch.tensor([[True], [False]])
        >>> round(mapping_loss(torch.zeros(2, 1), one_of_two).item(), 6)  # ln 2
        0.693147

    Source: Varma et al. 2023, ViLLA, arXiv 2308.11194, first stage. The public code sums one e^0 for each
    positive into the denominator.
    """
    absent = ~present if absent is None else absent
    # The lowest number and not −inf, whose softmax has no gradient where an attribute is absent nowhere.
    lowest = torch.finfo(scores.dtype).min
    others = torch.where(absent, scores, lowest).logsumexp(dim=0)
    contrasted = present & absent.any(dim=0)
    # −log[e^s / (e^s + e^o)] = softplus(o − s)
    losses = -nn.functional.logsigmoid(torch.where(contrasted, scores - others, 0.0))
    return torch.where(contrasted, losses, 0.0).sum() / present.sum().clamp_min(1)


def map_regions(
    cosines: Float[Tensor, "images attributes regions"],
    present: Bool[Tensor, "images attributes"],
    region_mask: Bool[Tensor, "images regions"],
    *,
    margin: float = 0.2,
) -> Bool[Tensor, "images attributes regions"]:
    """Return which regions show an attribute that the image has: those near its best region.

    ``M_iar = present_ia ∧ cos_iar ≥ max_r cos_iar − margin``

    Examples:
        >>> cosines = torch.tensor([[[0.9, 0.75, 0.1], [0.9, 0.9, 0.9]]])
        >>> map_regions(cosines, torch.tensor([[True, False]]), torch.ones(1, 3) > 0).int().tolist()
        [[[1, 1, 0], [0, 0, 0]]]
    """
    near = cosines >= best_region(cosines, region_mask)[..., None] - margin
    return near & present[..., None] & region_mask[:, None]


def region_attribute_loss(
    regions: Float[Tensor, "images regions dim"],
    attributes: Float[Tensor, "attributes dim"],
    mapped: Bool[Tensor, "images attributes regions"],
    *,
    scale: Float[Tensor, ""] | float,
    unknown: Bool[Tensor, "images attributes"] | None = None,
) -> Float[Tensor, ""]:
    """Contrast of what shows an attribute with the attribute, over all such pairs of the batch.

    ``L = CLIP(m_p, e_{a(p)})`` over pairs p = (i, a), ``m_ia = mean of r_i over the regions mapped to a``

    A text is no negative of a pair whose regions show it as well (it is the same attribute, or one that is
    mapped to one of the same regions), nor where the image may have it: there it leaves the softmax.

    Args:
        regions: one vector a region.
        attributes: one vector an attribute.
        mapped: True where a region shows an attribute; see :func:`map_regions`.
        scale: inverse temperature.
        unknown: True where nobody knows whether the image has the attribute.

    Examples:
        >>> regions = torch.eye(2)[:, None]  # two images of one region each
        >>> mapped = torch.eye(2)[..., None] > 0  # image 0 shows attribute 0, image 1 attribute 1
        >>> round(region_attribute_loss(regions, torch.eye(2), mapped, scale=1.0).item(), 6)  # ln(1 + 1/e)
        0.313262
    """
    regions, attributes = unit(regions), unit(attributes)
    pairs = mapped.any(dim=-1)
    if not pairs.any():
        return (regions.sum() + attributes.sum()) * 0.0
    image, attribute = pairs.nonzero(as_tuple=True)
    weights = mapped.to(regions.dtype)
    # i: images, a and b: attributes, r: regions, d: width
    shown = torch.einsum("iar,ird->iad", weights, regions) / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    fits = torch.einsum("iar,ibr->iab", weights, weights) > 0
    if unknown is not None:
        fits = fits | unknown[:, None]
    positives = fits[image, attribute][:, attribute].to(regions.dtype)
    return clip_loss(
        shown[image, attribute], attributes[attribute], positives, scale=scale, false_negatives="mask"
    )


class Villa(AlignmentObjective):
    """ViLLA on the findings of a store: whole cases, a mapping of regions, regions with findings.

    ``L = λ₁ CLIP + λ₂ mapping + λ₃ regions``

    The mapping learns from regions and names that it does not move, and follows them as they move; from
    epoch ``mapping_epochs`` on it says which regions are contrasted with which finding. An unknown finding
    is neither present nor absent; ``no_finding`` lies nowhere and counts as unknown.

    Args:
        dim: width of the features.
        findings: names of the columns of ``findings``; the training run fills them in.
        instance_weight: λ₁.
        mapping_weight: λ₂.
        region_weight: λ₃, 0 before ``mapping_epochs``.
        mapping_epochs: epochs in which only the mapping learns from regions.
        temperature: initial temperature of both learned scales.
        mapping_temperature: τ of the mapping.
        region_temperature: of the soft best region that the mapping learns from; 0 is the paper's maximum.
        margin: a region shows a finding if its cosine is at most this far below the best region's.
        false_negatives: what becomes of other cases that are right answers, in the contrast of whole cases.

    Raises:
        ConfigError: no ``findings``, an unknown ``false_negatives``, a negative weight, or a temperature
            below 0.01.

    Source: Varma et al. 2023, arXiv 2308.11194.
    """

    needs_local = True
    needs_attributes = True
    has_place: Bool[Tensor, " findings"]

    def __init__(
        self,
        dim: int,
        *,
        findings: Sequence[str] = (),
        instance_weight: float = 1.0,
        mapping_weight: float = 1.0,
        region_weight: float = 1.0,
        mapping_epochs: int = 1,
        temperature: float = 0.07,
        mapping_temperature: float = 0.07,
        region_temperature: float = 0.3,
        margin: float = 0.2,
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        check_numbers(0.0, instance_weight=instance_weight, mapping_weight=mapping_weight)
        check_numbers(0.0, region_weight=region_weight, margin=margin)
        check_numbers(0.0, region_temperature=region_temperature)
        check_numbers(0, mapping_epochs=mapping_epochs)
        check_numbers(0.01, mapping_temperature=mapping_temperature)
        self.weights = {"instance": instance_weight, "mapping": mapping_weight, "region": region_weight}
        self.mapping_epochs, self.joined = mapping_epochs, True
        self.mapping_temperature, self.margin = mapping_temperature, margin
        self.region_temperature = region_temperature
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)
        self.region_scale = LogitScale(temperature=temperature)
        if not findings:
            raise ConfigError(
                "objective 'villa' got no findings, and it maps regions to findings.",
                hint="Label the store, or choose an objective that reads reports alone, such as 'multi'.",
            )
        self.findings = tuple(findings)
        self.heads = AttributeHeads(dim, count=len(self.findings))
        # Not a part of the state: it belongs to the label columns of the store, not to what was learned.
        places = torch.tensor([name != "no_finding" for name in self.findings])
        self.register_buffer("has_place", places, persistent=False)

    def on_epoch(self, epoch: int) -> None:
        """Say which epoch begins: regions join from ``mapping_epochs`` on."""
        self.joined = epoch >= self.mapping_epochs

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch and its three weighted terms.

        Raises:
            ConfigError: the batch has no names of findings, or not as many as the objective.
        """
        findings, attributes = text_features.findings, text_features.attributes
        got = None if findings is None or attributes is None else len(attributes)
        if findings is None or attributes is None or got != len(self.findings):
            raise ConfigError(
                f"objective 'villa' has {len(self.findings)} findings, and the batch {got or 'none'}.",
                hint="Train on the store whose findings the objective was built with.",
            )
        # NaN is neither present nor absent.
        present, absent = (findings > 0.5) & self.has_place, (findings < 0.5) & self.has_place
        regions, mask = image_features.regions, image_features.region_mask
        # Autocast would bring the products back to half precision.
        with full_precision(regions.device):
            cosines = self.heads(regions.detach(), attributes.detach())
            best = best_region(cosines, mask, temperature=self.region_temperature)
            mapped = map_regions(cosines.detach(), present, mask, margin=self.margin)
            terms = {
                "instance": clip_loss(
                    image_features.pooled,
                    text_features.pooled,
                    positives,
                    scale=self.scale(),
                    false_negatives=self.false_negatives,
                ),
                "mapping": mapping_loss(best / self.mapping_temperature, present, absent=absent),
                "region": region_attribute_loss(
                    regions, attributes, mapped, scale=self.region_scale(), unknown=~(present | absent)
                ),
            }
        region = self.weights["region"] if self.joined else 0.0
        return weighted(terms, {**self.weights, "region": region})
