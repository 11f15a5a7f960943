"""The baseline to beat on little data: ridge regression between the same towers, frozen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medvl.errors import UsageError
from medvl.evaluation.retrieval import Ranking, cosine_scores

__all__ = ["ALPHAS", "Ridge", "fit_ridge"]

ALPHAS = tuple(10.0**power for power in range(-3, 5))
"""Penalties tried, as multiples of the mean eigenvalue of the image features' scatter matrix."""


@dataclass(frozen=True)
class Ridge:
    r"""A linear map from image features to text features, $\hat y = \bar y + (x - \bar x) W$.

    Attributes:
        alpha: the penalty chosen by cross-validation, relative to the mean eigenvalue.
        weights: $W$.
        image_mean, text_mean: $\bar x$ and $\bar y$ of the training pairs.
        rank: the cross-validated mean rank of the right partner, scaled to 0 (first) … 1 (last); chance 0.5.
    """

    alpha: float
    weights: Float[np.ndarray, "image_width text_width"]
    image_mean: Float[np.ndarray, " image_width"]
    text_mean: Float[np.ndarray, " text_width"]
    rank: float

    def scores(
        self, images: Float[np.ndarray, "images image_width"], texts: Float[np.ndarray, "texts text_width"]
    ) -> Float[np.ndarray, "images texts"]:
        """Return the cosine of predicted and real text features, both about the training mean."""
        return cosine_scores((images - self.image_mean) @ self.weights, texts - self.text_mean)


def fit_ridge(
    images: Float[np.ndarray, "pairs image_width"],
    texts: Float[np.ndarray, "pairs text_width"],
    *,
    groups: Collection[Any],
    alphas: Sequence[float] = ALPHAS,
    folds: int = 5,
    seed: int = 0,
) -> Ridge:
    r"""Fit ridge regression from image to text features; the penalty comes from inner cross-validation.

    $$W = (X^\top X + \alpha \bar\lambda I)^{-1} X^\top Y$$
    with centred $X$ and $Y$ and $\bar\lambda$ the mean eigenvalue of $X^\top X$, so that $\alpha$ has no
    unit. The $\alpha$ with the best mean rank of the right partner (both directions) over held-out groups
    wins; of equal ones, the largest.

    Args:
        images: pooled features of the unaligned pretrained image tower.
        texts: those of the text tower; row i is the partner of image i.
        groups: the patient of each pair; a patient is in one fold only.
        alphas: candidates.
        folds: at most this many; fewer where there are fewer groups.
        seed: of the folds.

    Raises:
        UsageError: fewer than 4 pairs or 2 groups.
    """
    names, codes = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    if len(images) < 4 or len(names) < 2:
        raise UsageError(
            f"ridge has {len(images)} training pairs of {len(names)} patients; it needs 4 pairs of 2.",
            hint="Evaluate without it: baselines=('chance', 'shuffled').",
        )
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    parts = min(folds, len(names))
    fold = (np.random.default_rng(seed).permutation(len(names)) % parts)[codes]
    ranks = np.zeros(len(alphas))
    for part in range(parts):
        held = fold == part
        solved = _solve(images[~held], texts[~held], alphas)
        for index, weights in enumerate(solved):
            predicted = (images[held] - images[~held].mean(0)) @ weights
            scores = cosine_scores(predicted, texts[held] - texts[~held].mean(0))
            ranks[index] += (_relative_rank(scores) + _relative_rank(scores.T)) / 2 * held.mean()
    best = max(range(len(alphas)), key=lambda index: (-round(float(ranks[index]), 9), alphas[index]))
    weights = _solve(images, texts, [alphas[best]])[0]
    return Ridge(float(alphas[best]), weights, images.mean(0), texts.mean(0), float(ranks[best]))


def _solve(
    images: Float[np.ndarray, "pairs image_width"],
    texts: Float[np.ndarray, "pairs text_width"],
    alphas: Sequence[float],
) -> list[Float[np.ndarray, "image_width text_width"]]:
    x, y = images - images.mean(0), texts - texts.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    projected = vectors.T @ (x.T @ y)
    scale = max(float(values.mean()), 1e-12)
    return [vectors @ (projected / (values + alpha * scale)[:, None]) for alpha in alphas]


def _relative_rank(scores: Float[np.ndarray, "queries gallery"]) -> float:
    n = len(scores)
    own: Int[np.ndarray, "n n"] = np.eye(n, dtype=np.int64)
    return float((Ranking(scores).rank(own == 1).mean() - 1) / max(n - 1, 1))
