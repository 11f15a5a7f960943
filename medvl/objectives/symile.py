"""The objective ``symile``: three or more modalities contrasted at once by their multilinear product."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.chunked import full_precision
from medvl.objectives.contrast import LogitScale, cross_entropy, logit_mask_and_targets, unit
from medvl.objectives.options import FalseNegatives, check_choice, false_negatives_mode
from medvl.objectives.targets import as_positives
from medvl.objectives.views import ViewPositives, of_view

__all__ = ["Negatives", "Symile", "random_orders", "symile_loss"]

Negatives = Literal["n", "n_squared"]
"""``n``: as many tuples as cases, drawn at random. ``n_squared``: every pair of the two other modalities."""

_LOGITS = 2**21
"""Logits that are held at a time; more are computed in blocks of rows, and again for the gradient."""


def random_orders(
    modalities: int, batch: int, *, generator: torch.Generator | None = None
) -> Int[Tensor, "modalities batch"]:
    """Return a permutation of the batch for each modality.

    Examples:
        >>> random_orders(3, 4, generator=torch.Generator().manual_seed(0)).sort(dim=1).values.tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    return torch.stack([torch.randperm(batch, generator=generator) for _ in range(modalities)])


def symile_loss(
    modalities: Sequence[Float[Tensor, "batch dim"]],
    *,
    scale: Float[Tensor, ""] | float,
    negatives: Negatives = "n",
    present: Bool[Tensor, "modalities batch"] | None = None,
    positives: Float[Tensor, "batch batch"] | Positives | None = None,
    false_negatives: FalseNegatives = "none",
    orders: Int[Tensor, "modalities batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Contrast each modality with tuples of all the others.

    ``⟨x, y, z⟩ = Σ_d x_d y_d z_d``. With x as the anchor, row i is the cross-entropy of its own tuple
    ``s·⟨x_i, y_i, z_i⟩`` among the negatives

    * ``n``: ``s·⟨x_i, y_π(j), z_ρ(j)⟩`` for ``j ≠ i``, with a permutation for each modality;
    * ``n_squared``: ``s·⟨x_i, y_j, z_k⟩`` for all ``(j, k) ≠ (i, i)``; three modalities only.

    The loss is the mean over the rows of an anchor, then over the anchors.

    A case without a modality is no anchor of it and no part of a tuple of it, and its product runs over the
    modalities that it has: its negatives are tuples of the same modalities, so that no product of three is
    ever compared with a product of two. A case with a single one does not count. A single other modality
    is taken in its own order, which makes two modalities exactly :func:`medvl.objectives.contrast.clip_loss`.

    Notation: x, y, z … are the normalised ``modalities``; s is ``scale``; π, ρ … are rows of ``orders``.

    Args:
        modalities: the vectors of each modality, of any length; row i of each belongs to case i.
        scale: inverse temperature.
        negatives: which tuples are compared.
        present: False where a case lacks a modality, whose vector is then not read; None where all are there.
        positives: how far the parts of case j are those of case i; a tuple is as right as its least right
            part. None for no two alike.
        false_negatives: what becomes of other right tuples; see
            :func:`medvl.objectives.contrast.logit_mask_and_targets`.
        orders: the permutations of ``n``; None draws them from ``generator``.
        generator: on the CPU; None for torch's own.

    Raises:
        ConfigError: fewer than two modalities, ``n_squared`` with more than three, or an unknown rule.

    Examples:
        >>> same = torch.ones(8, 4)
        >>> round(symile_loss([same] * 3, scale=14.3).item(), 4)  # ln 8
        2.0794
        >>> round(symile_loss([same] * 3, scale=14.3, negatives="n_squared").item(), 4)  # 2 ln 8
        4.1589

    Source: Saporta et al. 2024, arXiv 2411.01053. The rule for what is missing is ours: the paper's
    experiments put the mean of the observed features and a learned mark in its place.
    """
    mode = _negatives_mode(negatives)
    if len(modalities) < 2 or (mode == "n_squared" and len(modalities) > 3):
        allowed = "2 or 3" if mode == "n_squared" else "2 or more"
        raise ConfigError(
            f"{len(modalities)} modalities with negatives '{mode}'.", hint=f"Allowed: {allowed}."
        )
    raw = torch.stack(list(modalities))
    count, batch, device = len(raw), raw.shape[1], raw.device
    here = torch.ones(count, batch, dtype=torch.bool, device=device) if present is None else present
    vectors = unit(raw.masked_fill(~here[..., None], 0.0))
    if orders is None:
        orders = random_orders(count, batch, generator=generator)
    counts = here & (here.sum(dim=0) > 1)
    if not counts.any():
        return 0.0 * vectors.sum()
    tuples = _Tuples(
        mode,
        here=here,
        orders=orders.to(device),
        positives=None if positives is None else as_positives(positives),
        false_negatives=false_negatives_mode(false_negatives),
    )
    width = batch**2 if mode == "n_squared" and count == 3 else batch
    rows = max(1, _LOGITS // width)
    anchors = []
    for anchor in counts.any(dim=1).nonzero()[:, 0].tolist():
        total = vectors.new_zeros(())
        for start in range(0, batch, rows):
            block = functools.partial(
                tuples.losses, anchor=anchor, rows=counts[anchor, start : start + rows], start=start
            )
            if rows < batch:
                block = functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            total = total + block(vectors, scale)
        anchors.append(total / counts[anchor].sum())
    return torch.stack(anchors).mean()


class _Tuples:
    """The tuples that an anchor is compared with, a block of rows at a time; see :func:`symile_loss`."""

    def __init__(
        self,
        mode: Negatives,
        *,
        here: Bool[Tensor, "modalities batch"],
        orders: Int[Tensor, "modalities batch"],
        positives: Positives | None,
        false_negatives: FalseNegatives,
    ) -> None:
        self.mode, self.here, self.orders = mode, here, orders
        self.positives, self.false_negatives = positives, false_negatives

    def losses(
        self,
        vectors: Float[Tensor, "modalities batch dim"],
        scale: Float[Tensor, ""] | float,
        *,
        anchor: int,
        rows: Bool[Tensor, " rows"],
        start: int,
    ) -> Float[Tensor, ""]:
        """Return the sum of the cross-entropies of ``rows``, the first of which is row ``start``."""
        others = [other for other in range(len(vectors)) if other != anchor]
        seen = self.here[others, start : start + len(rows)].T
        right = None
        if self.positives is not None and self.false_negatives != "none":
            right = self.positives.rows(start, start + len(rows)).to(vectors.dtype)
        total = vectors.new_zeros(())
        for pattern in seen[rows].unique(dim=0):
            alike = (rows & (seen == pattern).all(dim=1)).nonzero()[:, 0]
            kept = [other for other, there in zip(others, pattern.tolist(), strict=True) if there]
            squared = self.mode == "n_squared" and len(kept) == 2
            compare = self._squared if squared else self._drawn
            logits, answers, there, own = compare(
                scale * vectors[anchor, alike + start],
                vectors,
                kept,
                alike + start,
                None if right is None else right[alike],
            )
            answers = answers.masked_fill(~there, 0.0)
            left_out, targets = logit_mask_and_targets(answers, own, mode=self.false_negatives)
            total = total + cross_entropy(logits, left_out | ~(there | own), targets).sum()
        return total

    def _drawn(
        self,
        queries: Float[Tensor, "rows dim"],
        vectors: Float[Tensor, "modalities batch dim"],
        kept: list[int],
        rows: Int[Tensor, " rows"],
        right: Float[Tensor, "rows batch"] | None,
    ) -> tuple[
        Float[Tensor, "rows batch"],
        Float[Tensor, "rows batch"],
        Bool[Tensor, " batch"],
        Bool[Tensor, "rows batch"],
    ]:
        """Return logits, how right each tuple is, whether it is whole, and which one is the row's own."""
        columns = torch.arange(vectors.shape[1], device=rows.device)
        # A single other modality is never taken apart, and any order but its own would lose a negative.
        orders = [self.orders[other] if len(kept) > 1 else columns for other in kept]
        parts = [vectors[other, order] for other, order in zip(kept, orders, strict=True)]
        own = rows[:, None] == columns
        true = functools.reduce(torch.mul, [queries, *(vectors[other, rows] for other in kept)]).sum(dim=1)
        logits = torch.where(own, true[:, None], queries @ functools.reduce(torch.mul, parts).T)
        there = [self.here[other, order] for other, order in zip(kept, orders, strict=True)]
        answers = torch.zeros_like(logits)
        if right is not None:
            answers = functools.reduce(torch.minimum, [right[:, order] for order in orders])
        return logits, answers, functools.reduce(torch.logical_and, there), own

    def _squared(
        self,
        queries: Float[Tensor, "rows dim"],
        vectors: Float[Tensor, "modalities batch dim"],
        kept: list[int],
        rows: Int[Tensor, " rows"],
        right: Float[Tensor, "rows batch"] | None,
    ) -> tuple[
        Float[Tensor, "rows pairs"],
        Float[Tensor, "rows pairs"],
        Bool[Tensor, " pairs"],
        Bool[Tensor, "rows pairs"],
    ]:
        """As :meth:`_drawn`, for all pairs (j, k) of two other modalities, k running fastest."""
        first, second = kept
        batch = vectors.shape[1]
        logits = ((queries[:, None] * vectors[first]) @ vectors[second].T).flatten(1)
        answers = torch.zeros_like(logits)
        if right is not None:
            answers = torch.minimum(right[:, :, None], right[:, None]).flatten(1)
        own = rows[:, None] * (batch + 1) == torch.arange(batch**2, device=rows.device)
        return logits, answers, (self.here[first][:, None] & self.here[second]).flatten(), own


def _negatives_mode(value: str) -> Negatives:
    check_choice("negatives", value, get_args(Negatives))
    return cast(Negatives, value)


class Symile(AlignmentObjective):
    """Two views of a study and its report as three modalities with one learned scale.

    The modalities are the first image, the second image, which a study may lack
    (``image_features.present``), and the mean of the two unit text vectors.

    The permutations of ``n`` are a function of how many steps were taken, which ``step`` counts: every rank
    and every resumed run draws the same.

    Args:
        dim: width of the features; no parameter depends on it here.
        temperature: initial temperature, the inverse of the learned scale.
        negatives: a :data:`Negatives`.
        false_negatives: what becomes of other tuples that fit a study.

    Raises:
        ConfigError: an unknown option, or a ``temperature`` below 0.01.

    Source: Saporta et al. 2024, arXiv 2411.01053.
    """

    views = 2
    step: Int[Tensor, ""]

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 0.07,
        negatives: str = "n",
        false_negatives: str = "none",
    ) -> None:
        super().__init__()
        self.negatives = _negatives_mode(negatives)
        self.false_negatives = false_negatives_mode(false_negatives)
        self.scale = LogitScale(temperature=temperature)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss of a gathered batch."""
        # Autocast would bring the products back to half precision.
        with full_precision(image_features.pooled.device):
            first, second = of_view(image_features.pooled, 0), of_view(image_features.pooled, 1)
            text = unit(of_view(text_features.pooled, 0)) + unit(of_view(text_features.pooled, 1))
            present = None
            if image_features.present is not None:
                whole = torch.ones(len(first), dtype=torch.bool, device=first.device)
                present = torch.stack([whole, of_view(image_features.present, 1), whole])
            loss = symile_loss(
                [first, second, text],
                scale=self.scale(),
                negatives=self.negatives,
                present=present,
                positives=ViewPositives(as_positives(positives), 0, 0),
                false_negatives=self.false_negatives,
                generator=torch.Generator().manual_seed(int(self.step)),
            )
        return LossTerms(loss, {"tuple": loss.detach()})

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the scale back into its range and count the step."""
        super().clamp_()
        self.step += 1
