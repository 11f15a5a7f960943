"""Findings against labels: AUROC and average precision with ties, uncertain labels and intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import rankdata

from medvl.errors import UsageError, nearest
from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.records import IS_PRESENT

__all__ = [
    "POLICIES",
    "Classification",
    "Uncertain",
    "auroc",
    "average_precision",
    "classify",
    "merged_labels",
    "resampled_curves",
    "roc_points",
    "truth_values",
]

Uncertain = Literal["exclude", "ones", "zeros", "mixed"]
POLICIES: tuple[Uncertain, ...] = ("exclude", "ones", "zeros", "mixed")
_U_ONES = {"atelectasis", "edema", "pleural_effusion"}
_U_ZEROS = {"cardiomegaly", "consolidation"}


def truth_values(
    labels: Sequence[Mapping[str, str]], findings: Sequence[str], *, uncertain: str = "exclude"
) -> Float[np.ndarray, "studies findings"]:
    """Return 1 for present, 0 for absent and NaN for what does not count.

    Args:
        labels: per study, finding to its state; what is not listed is unknown.
        findings: the columns.
        uncertain: ``exclude`` leaves uncertain findings out, ``ones`` and ``zeros`` take them as present or
            absent, ``mixed`` takes atelectasis, edema and pleural effusion as present, cardiomegaly and
            consolidation as absent, and leaves the others out (the convention of MGCA and GLoRIA).

    Raises:
        UsageError: an unknown policy.

    Examples:
        >>> truth_values([{"edema": "uncertain"}], ["edema", "fracture"], uncertain="mixed").tolist()
        [[1.0, nan]]
    """
    if uncertain not in POLICIES:
        raise UsageError(
            f"unknown policy '{uncertain}' for uncertain labels.", hint=nearest(uncertain, POLICIES)
        )

    def value(finding: str, state: str | None) -> float:
        if state == "uncertain":
            ones = uncertain == "ones" or (uncertain == "mixed" and finding in _U_ONES)
            zeros = uncertain == "zeros" or (uncertain == "mixed" and finding in _U_ZEROS)
            return 1.0 if ones else 0.0 if zeros else np.nan
        return float(IS_PRESENT.get(state or "", np.nan))

    rows = [[value(finding, states.get(finding)) for finding in findings] for states in labels]
    return np.asarray(rows, np.float64).reshape(len(labels), len(findings))


def merged_labels(labels: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the states of a study: present on one of its images is present.

    Examples:
        >>> merged_labels([{"edema": "absent"}, {"edema": "present", "fracture": "uncertain"}])
        {'edema': 'present', 'fracture': 'uncertain'}
    """
    order = {"absent": 0, "uncertain": 1, "unchanged": 2, "present": 3}
    merged: dict[str, str] = {}
    for states in labels:
        for finding, state in states.items():
            if finding not in merged or order[state] > order[merged[finding]]:
                merged[finding] = state
    return merged


def auroc(truth: Shaped[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    r"""Return the area under the ROC curve: $\Pr(s_+ > s_-) + \frac12 \Pr(s_+ = s_-)$.

    With $R$ the sum of the mid-ranks of the $p$ positives among all, and $q$ negatives, it is
    $(R - p(p+1)/2)/(pq)$ (Mann and Whitney 1947).

    Raises:
        UsageError: a score is NaN, or only one class is there.

    Examples:
        >>> auroc(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9]))
        0.75
    """
    positive = _positives(truth, scores)
    p, q = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - p * (p + 1) / 2) / (p * q))


def average_precision(truth: Shaped[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    r"""Return $\sum_t (R_t - R_{t-1}) P_t$ over the distinct thresholds $t$, high to low.

    Raises:
        UsageError: a score is NaN, or only one class is there.

    Examples:
        >>> average_precision(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.9]))
        0.8333333333333333
    """
    positive = _positives(truth, scores)
    _, precision = resampled_curves(positive, scores, np.ones((1, len(scores))))
    return float(precision[0])


def roc_points(
    truth: Shaped[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return false and true positive rates at every distinct threshold, from (0, 0) to (1, 1).

    Raises:
        UsageError: a score is NaN, or only one class is there.
    """
    positive = _positives(truth, scores)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.concatenate([[0.0], alarms / alarms[-1]]), np.concatenate([[0.0], hits / hits[-1]])


@dataclass(frozen=True)
class Classification:
    """The figures of one set of scores.

    Attributes:
        numbers: ``<finding>/AUROC``, ``/AP`` and ``/prevalence``; ``macro/AUROC`` and ``macro/AP``.
        findings: the findings with both classes, which the macro averages.
        dropped: the others, with the reason.
        samples: resampled values of ``macro/AUROC`` and ``macro/AP``, for differences between two models.
    """

    numbers: dict[str, Number]
    findings: tuple[str, ...]
    dropped: dict[str, str]
    samples: dict[str, Float[np.ndarray, " resamples"]] = field(default_factory=dict)


def classify(
    truth: Float[np.ndarray, "studies findings"],
    scores: Float[np.ndarray, "studies findings"],
    *,
    findings: Sequence[str],
    patients: Collection[Any],
    resamples: int = 2000,
    seed: int = 0,
) -> Classification:
    """Score each finding one against the rest, and the mean over findings, with patient intervals.

    Args:
        truth: 1, 0, or NaN where the study does not count.
        scores: larger means more likely present.
        findings: names of the columns.
        patients: the patient of each study.
        resamples: of the patient bootstrap.
        seed: of its draws; every finding sees the same ones, so the macro interval holds what they share.

    Raises:
        UsageError: a score is NaN.
    """
    bootstrap = Bootstrap(patients, resamples=resamples, seed=seed)
    numbers: dict[str, Number] = {}
    kept: list[str] = []
    dropped: dict[str, str] = {}
    macro: dict[str, Float[np.ndarray, " resamples"]] = {}
    curves: list[tuple[Float[np.ndarray, " resamples"], Float[np.ndarray, " resamples"]]] = []
    for column, finding in enumerate(findings):
        known = ~np.isnan(truth[:, column])
        positive = truth[known, column] == 1
        n, count = int(known.sum()), int(positive.sum())
        if count in (0, n):
            dropped[finding] = f"{count} present of {n} known"
            continue
        ranked = scores[known, column]
        resampled = resampled_curves(positive, ranked, bootstrap.draws[:, bootstrap.codes[known]])
        curves.append(resampled)
        people = len(np.unique(bootstrap.codes[known]))
        values = (auroc(positive, ranked), average_precision(positive, ranked))
        for name, value, samples in zip(("AUROC", "AP"), values, resampled, strict=True):
            number = bootstrap.number(value, samples)
            numbers[f"{finding}/{name}"] = _with(number, n=n, patients=people)
        numbers[f"{finding}/prevalence"] = Number(count / n, n=n, patients=people)
        kept.append(finding)
    for index, name in enumerate(("AUROC", "AP")):
        if kept:
            value = float(np.mean([numbers[f"{finding}/{name}"].value for finding in kept]))
            macro[f"macro/{name}"] = np.mean([pair[index] for pair in curves], axis=0)
            numbers[f"macro/{name}"] = bootstrap.number(value, macro[f"macro/{name}"])
    return Classification(numbers, tuple(kept), dropped, macro)


def _with(number: Number, *, n: int, patients: int) -> Number:
    return Number(number.value, number.low, number.high, n, patients, number.undefined)


def _positives(truth: Shaped[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> Any:
    if np.isnan(scores).any():
        raise UsageError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; no curve can rest on them.",
            hint="Find the inputs that gave them; they may not be replaced by a value.",
        )
    positive = np.asarray(truth) == 1
    if positive.all() or not positive.any():
        raise UsageError(
            f"{int(positive.sum())} of {len(positive)} rows are positive; a curve needs both classes.",
            hint="Leave the finding out and name it.",
        )
    return positive


def resampled_curves(
    positive: Any, scores: Float[np.ndarray, " rows"], weights: Float[np.ndarray, "resamples rows"]
) -> tuple[Float[np.ndarray, " resamples"], Float[np.ndarray, " resamples"]]:
    """Return AUROC and average precision under each row of weights; NaN where a class has no weight."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    areas, precisions = np.empty(len(weights)), np.empty(len(weights))
    step = max(1, (1 << 23) // len(scores))
    for start in range(0, len(weights), step):
        part = weights[start : start + step][:, order]
        hits = _grouped(part * positive[order], starts)
        alarms = _grouped(part * ~positive[order], starts)
        above, called = np.cumsum(hits, 1), np.cumsum(alarms, 1)
        p, q = above[:, -1], called[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = (alarms * (above - hits / 2)).sum(1)  # positives above each negative, ties half
            areas[start : start + step] = np.where((p > 0) & (q > 0), lost / (p * q), np.nan)
            steps = hits * np.nan_to_num(above / (above + called))
            precisions[start : start + step] = np.where((p > 0) & (q > 0), steps.sum(1) / p, np.nan)
    return areas, precisions


def _grouped(
    values: Float[np.ndarray, "resamples rows"], starts: Int[np.ndarray, " groups"]
) -> Float[np.ndarray, "resamples groups"]:
    return np.add.reduceat(values, starts, axis=1)
