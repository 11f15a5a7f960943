"""Which texts of a batch describe which images: the positives matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvl.errors import ConfigError, nearest

__all__ = ["KeyPositives", "PositivesMode", "finding_similarity", "positives"]

PositivesMode = Literal["identity", "same", "similar"]
"""``identity``: only a pair itself. ``same``: also the same study or the same words. ``similar``: also,
partly, another case with similar findings."""


@dataclass(frozen=True)
class KeyPositives:
    """:class:`medvl.features.Positives` from the keys and labels of a batch; see :func:`positives`."""

    study: Int[Tensor, " batch"]
    report: Int[Tensor, " batch"]
    labels: Float[Tensor, "batch labels"]
    mode: PositivesMode
    weight: float

    def __len__(self) -> int:
        """Return the size of the batch."""
        return len(self.study)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop``."""
        part = slice(start, stop)
        if self.mode == "identity":
            return torch.eye(len(self), device=self.study.device)[part]
        same = (self.study[part, None] == self.study) | (self.report[part, None] == self.report)
        if self.mode == "same":
            return same.float()
        return torch.where(same, 1.0, self.weight * finding_similarity(self.labels[part], self.labels))

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop``, transposed: P is symmetric."""
        return self.rows(start, stop)


def positives(
    study: Int[Tensor, " batch"],
    report: Int[Tensor, " batch"],
    labels: Float[Tensor, "batch labels"],
    *,
    mode: str = "similar",
    weight: float = 0.5,
) -> KeyPositives:
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
        >>> positives(keys, keys, findings, weight=0.5).rows(0, 3).tolist()
        [[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: METHODS §4; soft targets after MedCLIP (arXiv 2210.10163) eq. 3, with Jaccard for cosine.
    """
    if mode not in get_args(PositivesMode):
        raise ConfigError(f"unknown positives mode '{mode}'.", hint=nearest(mode, get_args(PositivesMode)))
    if not 0 < weight < 1:
        raise ConfigError(f"the weight of similar findings is {weight}.", hint="Allowed: 0 < weight < 1.")
    return KeyPositives(study, report, labels, cast(PositivesMode, mode), weight)


def finding_similarity(
    labels: Float[Tensor, "rows labels"], others: Float[Tensor, "columns labels"]
) -> Float[Tensor, "rows columns"]:
    """Return the Jaccard similarity of the present findings of each two rows.

    ``J_ij = Σ_f p_if p_jf / Σ_f k_if k_jf max(p_if, p_jf)`` over findings f, with p = 1 where present and
    k = 1 where known: a finding that is unknown in one row contributes nothing. Two rows without
    any present finding and with at least one finding known absent in both have ``J = 1``.
    """
    present, absent = _present_absent(labels)
    their_present, their_absent = _present_absent(others)
    both = present @ their_present.T
    either = both + present @ their_absent.T + absent @ their_present.T
    normal = (present.sum(1) == 0).float()
    agree = normal[:, None] * (their_present.sum(1) == 0).float() * (absent @ their_absent.T > 0)
    return torch.where(either > 0, both / either.clamp_min(1e-9), agree)


def _present_absent(
    labels: Float[Tensor, "rows labels"],
) -> tuple[Float[Tensor, "rows labels"], Float[Tensor, "rows labels"]]:
    known = (~labels.isnan()).float()
    present = labels.nan_to_num(0.0).clamp(0, 1) * known
    return present, known - present
