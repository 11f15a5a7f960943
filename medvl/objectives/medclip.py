"""The objective ``medclip``: a case is as right an answer as its findings are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.options import check_choice, false_negatives_mode

__all__ = ["LabelEncoding", "Medclip", "label_vectors", "medclip_loss"]

LabelEncoding = Literal["signed", "present"]
"""What a present, an absent and an unknown finding become: ``signed`` +1, −1, 0, as in MedCLIP; ``present``
+1, 0, 0, so that only what is there brings two cases together."""


def label_vectors(
    labels: Float[Tensor, "batch labels"], *, encoding: LabelEncoding
) -> Float[Tensor, "batch labels"]:
    """Return the findings as vectors of +1, 0 and −1.

    Args:
        labels: 1 present, 0 absent, NaN unknown or uncertain, as in :class:`medvl.features.Batch`.
            CheXpert's own numbers are others (−1 is uncertain), and so are MedCLIP's (−1 absent,
            0 uncertain).
        encoding: a :data:`LabelEncoding`.

    Raises:
        ConfigError: there is no finding, or a number below 0.

    Examples:
        >>> label_vectors(torch.tensor([[1.0, 0.0, float("nan")]]), encoding="signed").tolist()
        [[1.0, -1.0, 0.0]]
        >>> label_vectors(torch.tensor([[1.0, 0.0, float("nan")]]), encoding="present").tolist()
        [[1.0, 0.0, 0.0]]
    """
    if labels.shape[1] == 0:
        raise ConfigError(
            "no case has a labelled finding, so that all would be equally right answers.",
            hint="Prepare with labels, or choose the objective clip.",
        )
    if bool((labels < 0).any()):
        raise ConfigError(
            f"a label is {labels.nan_to_num(0.0).min():g}.",
            hint="Allowed: 1 present, 0 absent, NaN unknown; CheXpert's -1 is unknown, MedCLIP's is absent.",
        )
    signed = labels if encoding == "present" else 2 * labels - 1
    return signed.nan_to_num(0.0)


@dataclass(frozen=True)
class _Shares:
    """``e^{l_i·l_j − l_i·l_i}``: the row's softmax over j but for its sum, with a unit diagonal."""

    vectors: Float[Tensor, "batch labels"]

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop``."""
        rows = self.vectors[start:stop]
        # l_i·l_j counts at most the known findings of i, which l_i·l_i counts: no exponent is above 0.
        return (rows @ self.vectors.T - rows.square().sum(dim=1, keepdim=True)).exp()

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop``, transposed."""
        return (self.vectors[start:stop] @ self.vectors.T - self.vectors.square().sum(dim=1)).exp()


@dataclass(frozen=True)
class _Transposed:
    """The other way round: what a text's softmax over images is made of."""

    base: Positives

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return columns of ``base``."""
        return self.base.columns(start, stop)

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return rows of ``base``."""
        return self.base.rows(start, stop)


def medclip_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    vectors: Float[Tensor, "batch labels"],
    *,
    scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Contrast of images and texts whose targets come from their findings.

    ``P = softmax_j(l_i·l_j)``, ``L = −½[mean_i Σ_j P_ij log softmax_j(s·V Tᵀ) + mean_j Σ_i P_ji log
    softmax_i(s·T Vᵀ)]``

    Notation: ``V``, ``T`` are the normalised ``images`` and ``texts``; ``s`` is ``scale``; ``l`` are the
    ``vectors``, one for an image and its text. The dot product is raw, as published: targets get sharper with
    the number of known findings that two cases share.

    Examples:
        >>> constant = torch.ones(8, 3)
        >>> round(medclip_loss(constant, constant, torch.ones(8, 5), scale=14.3).item(), 4)  # ln 8
        2.0794

    Source: Wang et al. 2022 (MedCLIP), arXiv 2210.10163, eq. (2)–(5).
    """
    shares = _Shares(vectors.to(torch.promote_types(images.dtype, torch.float32)))
    # One call a direction: a row's sum over texts is not a column's over images.
    by_image = clip_loss(images, texts, shares, scale=scale, image_weight=1.0, false_negatives="soft")
    by_text = clip_loss(
        images, texts, _Transposed(shares), scale=scale, image_weight=0.0, false_negatives="soft"
    )
    return (by_image + by_text) / 2


class Medclip(AlignmentObjective):
    """Image–text contrast with soft targets from findings; see :func:`medclip_loss`.

    Args:
        dim: width of the features; no parameter depends on it here.
        temperature: initial temperature, the inverse of the learned scale.
        encoding: what a finding becomes, a :data:`LabelEncoding`.
        false_negatives: ``soft``: MedCLIP's targets, which read the findings and not the positives. The
            others are plain contrast with the rules of
            :func:`medvl.objectives.contrast.logit_mask_and_targets`.

    Raises:
        ConfigError: an unknown ``false_negatives`` or ``encoding``, or a ``temperature`` below 0.01.

    Source: Wang et al. 2022, arXiv 2210.10163.
    """

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 0.07,
        encoding: str = "signed",
        false_negatives: str = "soft",
    ) -> None:
        super().__init__()
        check_choice("encoding", encoding, get_args(LabelEncoding))
        self.encoding = cast(LabelEncoding, encoding)
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch.

        Raises:
            ConfigError: with ``soft``, labels that are missing or no labels at all.
        """
        images, texts, scale = image_features.pooled, text_features.pooled, self.scale()
        if self.false_negatives == "soft":
            findings = text_features.findings
            if findings is None:
                findings = images.new_empty(len(images), 0)
            vectors = label_vectors(findings, encoding=self.encoding)
            loss = medclip_loss(images, texts, vectors, scale=scale)
        else:
            loss = clip_loss(images, texts, positives, scale=scale, false_negatives=self.false_negatives)
        return LossTerms(loss, {"instance": loss.detach()})
