"""Which texts of a batch describe which images: the positives matrix."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvl.errors import ConfigError, nearest

__all__ = ["PositivesMode", "finding_similarity", "positives"]

PositivesMode = Literal["identity", "same", "similar"]
"""``identity``: only a pair itself. ``same``: also the same study or the same words. ``similar``: also,
partly, another case with similar findings."""


def positives(
    study: Int[Tensor, " batch"],
    report: Int[Tensor, " batch"],
    labels: Float[Tensor, "batch labels"],
    *,
    mode: str = "similar",
    weight: float = 0.5,
) -> Float[Tensor, "batch batch"]:
    """Return how far text j describes image i.

    ``P_ij = 1`` where ``study_i = study_j`` or ``report_i = report_j``, else ``weight · J_ij`` with J of
    :func:`finding_similarity` (0 in the other modes). P is symmetric with a unit diagonal.

    Args:
        study: keys of the studies.
        report: keys of the normalised reports.
        labels: 1 present, 0 absent, NaN unknown.
        mode: a :data:`PositivesMode`: which equalities count.
        weight: the value of a text with the very same findings in other words, inside (0, 1).

    Raises:
        ConfigError: an unknown mode, or a weight that is not inside (0, 1).

    Examples:
        >>> import torch
        >>> keys = torch.arange(3)
        >>> findings = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> positives(keys, keys, findings, weight=0.5).tolist()
        [[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: METHODS §4; soft targets after MedCLIP (arXiv 2210.10163) eq. 3, with Jaccard for cosine.
    """
    if mode not in get_args(PositivesMode):
        raise ConfigError(f"unknown positives mode '{mode}'.", hint=nearest(mode, get_args(PositivesMode)))
    if not 0 < weight < 1:
        raise ConfigError(f"the weight of similar findings is {weight}.", hint="Allowed: 0 < weight < 1.")
    if mode == "identity":
        return torch.eye(len(study), device=study.device)
    same = (study[:, None] == study) | (report[:, None] == report)
    if mode == "same":
        return same.float()
    return torch.where(same, 1.0, weight * finding_similarity(labels))


def finding_similarity(labels: Float[Tensor, "batch labels"]) -> Float[Tensor, "batch batch"]:
    """Return the Jaccard similarity of the present findings of each two rows.

    ``J_ij = Σ_f p_if p_jf / Σ_f k_if k_jf max(p_if, p_jf)`` over findings f, with p = 1 where present and
    k = 1 where known: a finding that is unknown in one row contributes nothing. Two rows without
    any present finding and with at least one finding known absent in both have ``J = 1``.
    """
    known = (~labels.isnan()).float()
    present = labels.nan_to_num(0.0).clamp(0, 1) * known
    absent = known - present
    both = present @ present.T
    either = both + present @ absent.T + absent @ present.T
    normal = (present.sum(1) == 0).float()
    agree = normal[:, None] * normal * (absent @ absent.T > 0)
    return torch.where(either > 0, both / either.clamp_min(1e-9), agree)
