"""A linear probe for findings: logistic regression on frozen embeddings, its penalty by inner validation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

from medvl.errors import UsageError
from medvl.evaluation.classification import auroc

__all__ = ["FOLDS", "PENALTIES", "fit_probe", "nested_share", "probe_scores"]

FOLDS = 3
"""Inner folds, on which the penalty is chosen."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Tried weights of the squared norm, per report, on standardised features."""


def fit_probe(
    features: Float[np.ndarray, "reports width"],
    truth: Float[np.ndarray, "reports findings"],
    *,
    penalty: float,
) -> Float[np.ndarray, "width_and_one findings"]:
    r"""Fit one logistic regression a finding, all at once, by L-BFGS.

    $$\min_{W,b} \frac1n \sum_{i,f \in K} \log(1 + e^{-y_{if}(x_i W_f + b_f)})
    + \frac\lambda2 \lVert W \rVert^2$$
    with $y = \pm 1$ and $K$ the known states; the problem falls apart into one a finding.

    Args:
        features: $x$, standardised.
        truth: 1, 0, or NaN where the state is not known.
        penalty: $\lambda$.

    Returns:
        Weights, the last row is $b$.
    """
    n, width = features.shape
    findings = truth.shape[1]
    inputs = np.concatenate([features, np.ones((n, 1))], axis=1)
    known = ~np.isnan(truth)
    target = np.where(known, truth, 0.0)

    def loss(flat: Float[np.ndarray, " weights"]) -> tuple[float, Float[np.ndarray, " weights"]]:
        weights = flat.reshape(width + 1, findings)
        logits = inputs @ weights
        each = np.logaddexp(0, logits) - target * logits
        slope = inputs.T @ (np.where(known, expit(logits) - target, 0.0) / n)
        slope[:-1] += penalty * weights[:-1]
        return float((each * known).sum() / n + penalty / 2 * (weights[:-1] ** 2).sum()), slope.ravel()

    start = np.zeros((width + 1) * findings)
    solved = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return np.asarray(solved.x).reshape(width + 1, findings)


def probe_scores(
    train: Float[np.ndarray, "reports width"],
    truth: Float[np.ndarray, "reports findings"],
    test: Float[np.ndarray, "others width"],
    *,
    patients: Collection[Any],
    folds: int = FOLDS,
    seed: int = 0,
) -> Float[np.ndarray, "others findings"]:
    """Return the log-odds of each finding for the test reports.

    Features are standardised by the training reports. The penalty with the best mean AUROC over inner folds
    of patients wins; of equal ones the largest.

    Args:
        train: embeddings of the training reports.
        truth: their states, NaN where unknown.
        test: embeddings to score.
        patients: of the training reports.
        folds: inner folds.
        seed: of the folds.

    Raises:
        UsageError: fewer patients than folds.
    """
    names, codes = np.unique(np.asarray([str(patient) for patient in patients]), return_inverse=True)
    if len(names) < folds:
        raise UsageError(f"the probe has {len(names)} training patients; it needs at least {folds}.")
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale < 1e-8, 1.0, scale)

    def standard(rows: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
        return ((rows - mean) / scale).astype(np.float64)

    inputs, others = standard(train), standard(test)
    fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[codes]
    quality = [
        np.mean([_quality(inputs, truth, fold == part, penalty=penalty) for part in range(folds)])
        for penalty in PENALTIES
    ]
    best = max(range(len(PENALTIES)), key=lambda index: (round(float(quality[index]), 9), PENALTIES[index]))
    return _apply(others, fit_probe(inputs, truth, penalty=PENALTIES[best]))


def _apply(
    features: Float[np.ndarray, "reports width"], weights: Float[np.ndarray, "width_and_one findings"]
) -> Float[np.ndarray, "reports findings"]:
    return features @ weights[:-1] + weights[-1]


def _quality(
    inputs: Float[np.ndarray, "reports width"],
    truth: Float[np.ndarray, "reports findings"],
    held: Any,
    *,
    penalty: float,
) -> float:
    """Return the mean AUROC over the findings that have both classes among the held-out reports."""
    scores = _apply(inputs[held], fit_probe(inputs[~held], truth[~held], penalty=penalty))
    areas = []
    for column in range(truth.shape[1]):
        known = ~np.isnan(truth[held, column])
        states = truth[held, column][known]
        if len(np.unique(states)) == 2:
            areas.append(auroc(states, scores[known, column]))
    return float(np.mean(areas)) if areas else 0.5


def nested_share(patients: Sequence[str], *, share: float, seed: int) -> Float[np.ndarray, " reports"]:
    """Return 1 for the reports of a share of the patients, 0 for others; a smaller share lies in a larger."""
    names = sorted(set(patients))
    order = np.random.default_rng([seed, 7]).permutation(len(names))
    kept = {names[index] for index in order[: max(1, round(share * len(names)))]}
    return np.asarray([float(patient in kept) for patient in patients])
