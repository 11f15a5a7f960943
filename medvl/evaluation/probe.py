"""A linear probe: what a frozen encoder's vectors say about a finding, by the share of labels used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from medvl.errors import UsageError
from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.evaluation.classification import auroc, resampled_curves

__all__ = ["PENALTIES", "Probed", "linear_probe", "nested_subset"]

PENALTIES = tuple(10.0**power for power in range(-4, 3))
"""Inverse penalties C tried; the inner cross-validation chooses."""


@dataclass(frozen=True)
class Probed:
    """The figures of a probe.

    Attributes:
        numbers: by share of the training patients, the AUROC averaged over the draws, with the interval of a
            patient bootstrap of the test set in which all draws are resampled together.
        draws: by share, the AUROC of each draw of the training subset.
        sizes: by share, the number of training rows of each draw.
    """

    numbers: dict[float, Number]
    draws: dict[float, tuple[float, ...]]
    sizes: dict[float, tuple[int, ...]]


def nested_subset(
    truth: Bool[np.ndarray, " rows"], groups: Collection[Any], *, share: float, seed: int
) -> Int[np.ndarray, " chosen"]:
    """Return the rows of a share of the groups, drawn so that a smaller share is part of a larger one.

    The groups are put in one random order a seed; the first ``⌈share · groups⌉`` are taken, and as many more
    as it needs to have 4 rows of each class (fewer where the whole set has fewer).

    Examples:
        >>> truth, groups = np.array([0, 1] * 8, bool), list("aabbccddeeffgghh")
        >>> small, large = (nested_subset(truth, groups, share=s, seed=3) for s in (0.5, 1.0))
        >>> set(small) < set(large), len(large)
        (True, 16)
    """
    names, codes = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    place = np.argsort(np.random.default_rng(seed).permutation(len(names)))[codes]
    least = min(4, int(truth.sum()), int((~truth).sum()))
    needed = max(np.sort(place[truth])[least - 1], np.sort(place[~truth])[least - 1]) + 1 if least else 1
    return np.flatnonzero(place < max(int(np.ceil(share * len(names))), int(needed)))


def linear_probe(
    train: Float[np.ndarray, "train width"],
    truth: Bool[np.ndarray, " train"],
    groups: Collection[Any],
    *,
    test: Float[np.ndarray, "test width"],
    test_truth: Bool[np.ndarray, " test"],
    test_groups: Collection[Any],
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    draws: int = 5,
    resamples: int = 2000,
    seed: int = 0,
) -> Probed:
    """Fit logistic regressions on shares of the training patients and score each on the whole test set.

    Vectors are standardised by the training subset. The inverse penalty comes from a cross-validation inside
    the subset, by group; where a class has rows of one group only, it is 1. The full share is drawn once.

    Args:
        train: one vector a row.
        truth: its class.
        groups: its patient; a patient is in one fold and one subset only.
        test: one vector a held-out row.
        test_truth: its class.
        test_groups: its patient.
        shares: of the training patients.
        draws: subsets of each share below 1.
        resamples: of the patient bootstrap.
        seed: of the subsets and the bootstrap.

    Raises:
        UsageError: a patient is on both sides, or a side has one class only.

    Source: the protocol of ConVIRT (arXiv 2010.00747, §4) and MGCA, with nested subsets by patient.
    """
    shared = {str(group) for group in groups} & {str(group) for group in test_groups}
    if shared:
        raise UsageError(
            f"{len(shared)} patients are both in training and in test.", hint="Split by patient."
        )
    for name, side in (("training", truth), ("test", test_truth)):
        if side.all() or not side.any():
            raise UsageError(
                f"{int(side.sum())} of {len(side)} {name} rows are positive; both classes are needed."
            )
    bootstrap = Bootstrap(test_groups, resamples=resamples, seed=seed)
    weights = bootstrap.draws[:, bootstrap.codes]
    names = np.asarray([str(group) for group in groups])
    numbers: dict[float, Number] = {}
    values: dict[float, tuple[float, ...]] = {}
    sizes: dict[float, tuple[int, ...]] = {}
    for share in shares:
        scored, samples, used = [], [], []
        for draw in range(1 if share >= 1 else draws):
            rows = nested_subset(truth, names, share=share, seed=seed + draw)
            scores = _fit(train[rows], truth[rows], names[rows], seed=seed + draw)(test)
            scored.append(auroc(test_truth, scores))
            samples.append(resampled_curves(test_truth, scores, weights)[0])
            used.append(len(rows))
        numbers[share] = bootstrap.number(float(np.mean(scored)), np.mean(samples, axis=0))
        values[share], sizes[share] = tuple(scored), tuple(used)
    return Probed(numbers, values, sizes)


def _fit(
    vectors: Float[np.ndarray, "rows width"],
    truth: Bool[np.ndarray, " rows"],
    groups: np.ndarray,
    *,
    seed: int,
) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    centre, spread = vectors.mean(0), vectors.std(0) + 1e-6

    def model(rows: Any, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties on few rows stop at the cap
            fitted = LogisticRegression(C=penalty, max_iter=200)
            fitted.fit((vectors[rows] - centre) / spread, truth[rows])
        return lambda others: fitted.decision_function((others - centre) / spread)

    # Threads would wait for each other longer than problems as small as these take.
    with threadpool_limits(1):
        chosen = model(slice(None), _penalty(vectors, truth, groups, model, seed=seed))
    return chosen


def _penalty(
    vectors: Float[np.ndarray, "rows width"],
    truth: Bool[np.ndarray, " rows"],
    groups: np.ndarray,
    model: Callable[[Any, float], Callable[[np.ndarray], np.ndarray]],
    *,
    seed: int,
) -> float:
    """Return the penalty of the least cross-entropy on held-out groups; 1 where a class has one group."""
    from sklearn.model_selection import StratifiedGroupKFold

    people = min(len(np.unique(groups[truth])), len(np.unique(groups[~truth])))
    if people < 2:
        return 1.0
    folds = StratifiedGroupKFold(min(5, people), shuffle=True, random_state=seed)
    losses = np.zeros(len(PENALTIES))
    for inner, held in folds.split(vectors, truth, groups):
        if truth[inner].all() or not truth[inner].any():
            continue
        for index, penalty in enumerate(PENALTIES):
            odds = model(inner, penalty)(vectors[held])
            losses[index] += np.logaddexp(0, np.where(truth[held], -odds, odds)).sum()
    return PENALTIES[int(np.argmin(losses))]
