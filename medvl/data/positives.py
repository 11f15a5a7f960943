"""Which texts of a batch describe which images: the positives matrix, computed a block of rows at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvl.errors import ConfigError, nearest

__all__ = ["KeyPositives", "PositivesMode", "finding_similarity", "positives", "same_findings"]

PositivesMode = Literal["identity", "same", "label", "similar", "bank"]
"""``identity``: only a pair itself. ``same``: also the same study or the same words. ``label``: also another
case with the very same findings. ``similar``: also, partly, another case with similar findings. ``bank``:
also, partly, a case whose report means nearly the same."""

_BLOCK_ENTRIES = 1 << 22
"""Entries of the bank's similarities computed at once while neighbours are looked for."""
_SLACK = 1e-6
"""Similarities closer than this are ties: products of other shapes round in other ways."""
_FAINT = 1e-6
"""The least value of a neighbour, so that one with a negative similarity is still one."""


@dataclass(frozen=True)
class KeyPositives:
    """:class:`medvl.features.Positives` from what a batch knows of its cases; see :func:`positives`."""

    study: Int[Tensor, " batch"]
    report: Int[Tensor, " batch"]
    labels: Float[Tensor, "batch labels"]
    mode: PositivesMode
    weight: float
    bank: Float[Tensor, "batch bank"] | None = None
    neighbours: int = 8
    least: float = 0.8

    def __len__(self) -> int:
        """Return the size of the batch."""
        return len(self.study)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop``."""
        part = slice(start, stop)
        if self.mode == "identity":
            return torch.eye(len(self), device=self.study.device)[part]
        same = self._same(part)
        if self.mode == "label":
            return (same | same_findings(self.labels[part], self.labels)).float()
        if self.mode == "similar":
            return torch.where(same, 1.0, self.weight * finding_similarity(self.labels[part], self.labels))
        if self.mode == "bank":
            return torch.where(same, 1.0, self._from_bank(part))
        return same.float()

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop``, transposed: P is symmetric."""
        return self.rows(start, stop)

    def _same(self, part: slice) -> Bool[Tensor, "rows batch"]:
        return (self.study[part, None] == self.study) | (self.report[part, None] == self.report)

    def _similarity(self, part: slice) -> Float[Tensor, "rows batch"]:
        assert self.bank is not None
        vectors = self.bank.float()
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors[part] @ vectors.T

    @functools.cached_property
    def _reach(self) -> Float[Tensor, " batch"]:
        """The similarity that a text must have to be among the nearest ones of each row, or ``least``."""
        count = min(self.neighbours, len(self))
        step = max(1, _BLOCK_ENTRIES // max(1, len(self)))
        nearest_ones = []
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            others = self._similarity(part).masked_fill(self._same(part), -torch.inf)
            nearest_ones.append(others.topk(count, dim=1).values[:, -1])
        return torch.cat(nearest_ones).clamp_min(self.least) - _SLACK

    def _from_bank(self, part: slice) -> Float[Tensor, "rows batch"]:
        similarity = self._similarity(part)
        near = (similarity >= self._reach[part, None]) | (similarity >= self._reach)
        if self.weight == 1:
            return near.float()
        return torch.where(near, (self.weight * similarity).clamp(_FAINT, self.weight), 0.0)


def positives(
    study: Int[Tensor, " batch"],
    report: Int[Tensor, " batch"],
    labels: Float[Tensor, "batch labels"],
    *,
    mode: str = "similar",
    weight: float = 0.5,
    bank: Float[Tensor, "batch bank"] | None = None,
    neighbours: int = 8,
    least: float = 0.8,
) -> KeyPositives:
    """Return how far text j describes image i.

    ``P_ij = 1`` where ``study_i = study_j`` or ``report_i = report_j``; elsewhere by ``mode``:

    ============ =========================================================================================
    ``identity`` 0, and also 0 for another row of the same study or words
    ``same``     0
    ``label``    1 where :func:`same_findings`, else 0
    ``similar``  ``weight · J_ij`` with J of :func:`finding_similarity`
    ``bank``     ``weight · b_i·b_j``, or 1 with a weight of 1, where j is among the ``neighbours`` of i or
                 i among those of j and ``b_i·b_j ≥ least``, else 0
    ============ =========================================================================================

    P is symmetric with a unit diagonal. No more than a block of rows is held at once: ``bank`` first finds,
    block by block, the similarity that each row's farthest neighbour has. Whether j belongs to i is then seen
    from one entry and these two thresholds, so that rows are computed alone and columns are rows. Rows of the
    same study or words take no place among the neighbours; ties with the last one all belong. With ``least``
    above 1, or an empty bank (no column), P is exactly that of ``same``.

    Args:
        study: keys of the studies.
        report: keys of the normalised reports.
        labels: 1 present, 0 absent, NaN unknown.
        mode: a :data:`PositivesMode`: which equalities count.
        weight: the value of a text with the very same findings or meaning in other words, in (0, 1]. The
            rules ``mask`` and ``multi`` for false negatives read ``P = 1`` alone: with a weight of 1 they act
            on such texts too.
        bank: unit vectors b of the reports from a frozen text encoder.
        neighbours: nearest reports of each that count.
        least: the least similarity that counts.

    Raises:
        ConfigError: an unknown mode, a weight that is not in (0, 1], fewer than one neighbour, or the
            mode ``bank`` without a bank.

    Examples:
        >>> import torch
        >>> keys = torch.arange(3)
        >>> findings = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> positives(keys, keys, findings, weight=0.5).rows(0, 3).tolist()
        [[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]
        >>> bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> positives(keys, keys, findings, mode="bank", bank=bank).rows(0, 3).tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: METHODS §4; soft targets after MedCLIP (arXiv 2210.10163) eq. 3, with Jaccard for cosine; ``bank``
    after the semantic matching bank of MedVista3D (arXiv 2509.03800), of which neither formula nor code is
    public.
    """
    if mode not in get_args(PositivesMode):
        raise ConfigError(f"unknown positives mode '{mode}'.", hint=nearest(mode, get_args(PositivesMode)))
    if not 0 < weight <= 1:
        raise ConfigError(f"the weight of similar findings is {weight}.", hint="Allowed: 0 < weight <= 1.")
    if neighbours < 1:
        raise ConfigError(f"neighbours is {neighbours}.", hint="Allowed: 1 or more.")
    if mode == "bank":
        if bank is None:
            raise ConfigError(
                "positives mode 'bank' got no bank vectors.",
                hint="Embed the reports with medvl.training.bank.bank_vectors, or use the mode 'same'.",
            )
        if least > 1 or bank.shape[1] == 0:
            mode = "same"
    return KeyPositives(
        study,
        report,
        labels,
        cast(PositivesMode, mode),
        weight,
        bank=bank if mode == "bank" else None,
        neighbours=neighbours,
        least=least,
    )


def same_findings(
    labels: Float[Tensor, "rows labels"], others: Float[Tensor, "columns labels"]
) -> Bool[Tensor, "rows columns"]:
    """Return which two rows have the same findings: equal sets of present ones, and one known in both.

    Examples:
        >>> unknown = float("nan")
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, unknown], [0.0, unknown], [unknown, 0.0]])
        >>> same_findings(rows, rows).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    """
    present, absent = _present_absent(labels)
    their_present, their_absent = _present_absent(others)
    shared = present @ their_present.T
    equal = (shared == present.sum(1)[:, None]) & (shared == their_present.sum(1))
    return equal & ((shared > 0) | (absent @ their_absent.T > 0))


def finding_similarity(
    labels: Float[Tensor, "rows labels"], others: Float[Tensor, "columns labels"]
) -> Float[Tensor, "rows columns"]:
    """Return the Jaccard similarity of the present findings of each two rows.

    ``J_ij = Σ_f p_if p_jf / Σ_f k_if k_jf max(p_if, p_jf)`` over findings f, with p = 1 where present and
    k = 1 where known: a finding that is unknown in one row contributes nothing. Two rows without
    any present finding and with at least one finding known absent in both have ``J = 1``.

    Examples:
        >>> rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, float("nan")], [0.0, 0.0, 0.0]])
        >>> finding_similarity(rows, rows)[0].tolist()
        [1.0, 0.5, 0.0]
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
