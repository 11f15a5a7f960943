"""Shortcut probes: how much of the truth can be guessed without looking at the anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvl.errors import BadTable
from medvl.phantoms.truth import FINDINGS

__all__ = ["Probe", "probe_all", "shortcut_probes"]

_FOLDS, _FEWEST = 5, 10
_TAGS = ("view", "sop_class", "photometric", "bits_stored", "voi", "syntax", "spacing", "manufacturer", "kvp")


@dataclass(frozen=True)
class Probe:
    """What a logistic regression on a shortcut reaches.

    Attributes:
        shortcut: ``"report_length"``, ``"mean_intensity"`` or ``"acquisition"``.
        target: a finding, or ``"any"``.
        auroc: mean over the folds; chance is 0.5.
        standard_error: of the AUROC under the null, ``√((n₁ + n₀ + 1) / (12·n₁·n₀))``.
        positives, studies: how many there are.
    """

    shortcut: str
    target: str
    auroc: float
    standard_error: float
    positives: int
    studies: int


def shortcut_probes(folder: Path) -> list[Probe]:
    """Return the probes of every shortcut against each finding and against any finding.

    A study's features are cross-validated in five folds that keep patients together: number of words
    of the report, mean grey of the frontal image, and one-hot acquisition tags. Findings with fewer
    than ten positive or ten negative studies are left out.

    Args:
        folder: a phantom folder.

    Raises:
        BadTable: the folder holds no tables of a phantom set.
    """
    missing = [name for name in ("reports.csv", "labels.csv", "truth.csv") if not (folder / name).is_file()]
    if missing:
        raise BadTable(
            f"the folder has no {', '.join(missing)}.",
            hint="Give a folder that write_phantoms made.",
        )
    reports = pd.read_csv(folder / "reports.csv", keep_default_na=False)
    labels = pd.read_csv(folder / "labels.csv").set_index("accession").loc[reports["accession"]]
    images = pd.read_csv(folder / "truth.csv", keep_default_na=False).drop_duplicates("accession")
    images = images.set_index("accession").loc[reports["accession"]]
    shortcuts = {
        "report_length": reports[["report"]].map(lambda text: float(len(text.split()))).to_numpy(),
        "mean_intensity": images[["mean_grey"]].to_numpy(float),
        "acquisition": pd.get_dummies(images[list(_TAGS)].astype(str)).to_numpy(float),
    }
    groups = pd.factorize(reports["patient_id"])[0].astype(np.int64)
    kinds = [kind for kind in FINDINGS if kind in labels]
    targets = {"any": labels[kinds].to_numpy().max(1), **{kind: labels[kind].to_numpy() for kind in kinds}}
    return probe_all(shortcuts, targets, groups)


def probe_all(
    shortcuts: dict[str, Float64[np.ndarray, "studies _"]],
    targets: dict[str, Int64[np.ndarray, " studies"]],
    groups: Int64[np.ndarray, " studies"],
) -> list[Probe]:
    """Return the probe of every shortcut against every target with ten of each kind.

    Args:
        shortcuts: features of each shortcut, one row a study.
        targets: 1 where a study has a finding, else 0.
        groups: the number of each study's patient, from 0.
    """
    return [
        _probe(shortcut, target, features, truth.astype(np.int64), groups)
        for shortcut, features in shortcuts.items()
        for target, truth in targets.items()
        if min(truth.sum(), len(truth) - truth.sum()) >= _FEWEST
    ]


def _probe(
    shortcut: str,
    target: str,
    features: Float64[np.ndarray, "studies features"],
    truth: Int64[np.ndarray, " studies"],
    groups: Int64[np.ndarray, " studies"],
) -> Probe:
    scores = []
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % _FOLDS
    for held_out in range(_FOLDS):
        train, test = fold != held_out, fold == held_out
        if len(set(truth[test])) < 2 or len(set(truth[train])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
        model.fit(features[train], truth[train])
        scores.append(roc_auc_score(truth[test], model.decision_function(features[test])))
    positives, negatives = int(truth.sum()), int(len(truth) - truth.sum())
    error = ((positives + negatives + 1) / (12 * positives * negatives)) ** 0.5
    return Probe(shortcut, target, round(float(np.mean(scores)), 4), round(error, 4), positives, len(truth))
