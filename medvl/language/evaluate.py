"""Evaluate a report encoder on held-out reports: retrieval, robustness, errors, impressions, a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from medvl.corpus import ReportCase
from medvl.errors import UsageError, nearest
from medvl.evaluation.bootstrap import METHOD, Number
from medvl.evaluation.classification import classify
from medvl.evaluation.tables import cell
from medvl.language.baselines import Embed
from medvl.language.probe import FOLDS, nested_share, probe_scores
from medvl.language.robustness import (
    Figures,
    Vectors,
    error_figures,
    impression_figures,
    retrieval_figures,
)
from medvl.language.trials import Reword, Trials, make_trials
from medvl.notice import NOTICE
from medvl.progress import Progress

__all__ = ["SHARES", "TextEvaluation", "difference", "evaluate_text"]

SHARES = (1.0, 0.1)
"""Shares of the training patients that the label probe learns from; the smaller lies in the larger."""
_LEAST_PRESENT = 10
_BATCH = 256
HEADLINES = {
    "retrieval/seen/all/R@1": "variant retrieval R@1, rules of training",
    "retrieval/unseen/all/R@1": "variant retrieval R@1, held-out rules",
    "error/unseen/all/accuracy": "one error: paraphrase nearer than the copy with it",
    "error/matched/all/accuracy": "one error: paraphrase nearer than itself with it",
    "impression/R@1": "findings → impression R@1",
    "probe/100%/macro/AUROC": "label probe AUROC, all training reports",
    "probe/10%/macro/AUROC": "label probe AUROC, a tenth of them",
}
"""The figures of the summary."""


@dataclass(frozen=True)
class TextEvaluation:
    """The figures of one encoder.

    Attributes:
        name: of the encoder.
        figures: by key: ``retrieval/…``, ``drop/…``, ``error/…``, ``impression/…``, ``probe/…``.
        data: how many reports, patients and wordings there were.
        protocol: how it was done.
    """

    name: str
    figures: Figures
    data: Mapping[str, Any]
    protocol: Mapping[str, Any]

    def number(self, key: str) -> Number:
        """Return one figure.

        Raises:
            UsageError: there is no such figure; the message names the nearest.
        """
        if key not in self.figures.numbers:
            near = nearest(key, self.figures.numbers).rpartition(". ")[2]
            raise UsageError(f"there is no figure '{key}'.", hint=near if near.startswith("Did") else "")
        return self.figures.numbers[key]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        numbers = {
            key: number.plain() | ({"chance": self.figures.chance[key]} if key in self.figures.chance else {})
            for key, number in self.figures.numbers.items()
        }
        return {
            "name": self.name,
            "data": dict(self.data),
            "protocol": dict(self.protocol),
            "numbers": numbers,
            "notice": NOTICE,
        }

    def lines(self) -> list[str]:
        """Return the summary for people."""
        numbers = self.figures.numbers
        found = [
            f"{title}: {cell(numbers[key].plain())}  chance {self.figures.chance[key]:.3f}"
            for key, title in HEADLINES.items()
            if key in numbers
        ]
        left_out = self.data.get("left_out", 0)
        told = f", {left_out} more left out: training has their words" if left_out else ""
        return [f"{self.name}: {self.data['reports']} held-out reports{told}", *found, NOTICE]


def evaluate_text(
    embed: Embed,
    cases: Sequence[ReportCase],
    *,
    variants: Reword,
    hard_negatives: Reword,
    name: str = "model",
    splits: Sequence[str] = ("test",),
    seed: int = 0,
    resamples: int = 2000,
    trials: Trials | None = None,
    progress: Progress | None = None,
) -> TextEvaluation:
    """Evaluate an encoder on the held-out reports of one source.

    Rules that training may use and rules that are held out are told apart everywhere: an encoder that learned
    the rules by heart is good at the first alone. Intervals come from resampling patients. Labels that a
    report does not name count as absent in the probe, uncertain ones are left out; findings that fewer than
    10 training reports have are left out and counted.

    Args:
        embed: lists of sentences to rows; see :class:`medvl.language.embed.TextEmbedder`.
        cases: the corpus; ``train`` reports serve the probe.
        variants: makes wordings with the same facts, see :func:`make_trials`.
        hard_negatives: makes wordings with one error.
        name: of the encoder in tables.
        splits: what counts as held out.
        seed: of wordings, folds and draws.
        resamples: of the patient bootstrap.
        trials: wordings that were made before, for comparing encoders; ``variants``, ``hard_negatives`` and
            ``splits`` are then not asked.
        progress: told about texts.

    Raises:
        UsageError: too few held-out reports, or the encoder gave NaN.
    """
    trials = trials or make_trials(
        cases, variants=variants, hard_negatives=hard_negatives, splits=splits, seed=seed, progress=progress
    )
    vectors = _embedded(embed, trials, progress)
    figures = Figures(resamples=resamples, seed=seed)
    retrieval_figures(figures, trials, vectors)
    error_figures(figures, trials, vectors)
    impression_figures(figures, trials, vectors)
    probed = _probe_figures(figures, trials, vectors)
    return TextEvaluation(
        name=name,
        figures=figures,
        data={
            "reports": len(trials.cases),
            "left_out": trials.left_out,
            "patients": len(set(trials.patients)),
            "train_reports": len(trials.train),
            "variants": {f"{part}/{kind}": len(rows) for (part, kind), rows in trials.variants.items()},
            "errors": {f"{part}/{kind}": len(rows) for (part, kind), rows in trials.errors.items()},
            "findings_probed": probed,
        },
        protocol={
            "interval": METHOD,
            "resamples": resamples,
            "seed": seed,
            "duplicates": "equal reports stand once; an equal wording of another report is right, too",
            "ties": "expected over every order; half in pairs",
            "probe": "logistic regression, penalty by inner folds of patients; unnamed labels are absent",
        },
    )


def _embedded(embed: Embed, trials: Trials, progress: Progress | None) -> Vectors:
    texts = trials.texts()
    order = sorted(range(len(texts)), key=lambda index: sum(map(len, texts[index])))
    vectors: dict[tuple[str, ...], Float[np.ndarray, " width"]] = {}
    for start in range(0, len(order), _BATCH):
        chosen = [texts[index] for index in order[start : start + _BATCH]]
        rows = embed(chosen)
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows)).any(1).sum())
            raise UsageError(f"the encoder gave NaN or infinity for {bad} of {len(rows)} texts.")
        vectors |= dict(zip(chosen, np.asarray(rows, np.float32), strict=True))
        if progress is not None:
            progress(min(start + _BATCH, len(order)), len(order), "embedding texts")
    return vectors


def _probe_figures(figures: Figures, trials: Trials, vectors: Vectors) -> list[str]:
    """Probe the labels from shares of the training patients; return the findings that were probed."""
    counts: dict[str, int] = {}
    for case in trials.train:
        for finding, state in case.labels.items():
            counts[finding] = counts.get(finding, 0) + (state in ("present", "unchanged"))
    total = len(trials.train)
    findings = sorted(f for f, n in counts.items() if _LEAST_PRESENT <= n <= total - _LEAST_PRESENT)
    if not findings:
        return []
    truth, known = _truth(trials.cases, findings), _truth(trials.train, findings)
    inputs = np.stack([vectors[case.sentences] for case in trials.train])
    others = np.stack([vectors[case.sentences] for case in trials.cases])
    people = [case.patient_id for case in trials.train]
    for share in SHARES:
        chosen = nested_share(people, share=share, seed=figures.seed) > 0
        part = [person for person, kept in zip(people, chosen, strict=True) if kept]
        if len(set(part)) < FOLDS:
            continue  # too few to choose a penalty on; the tables lack the row
        scores = probe_scores(inputs[chosen], known[chosen], others, patients=part, seed=figures.seed)
        judged = classify(
            truth,
            scores,
            findings=findings,
            patients=trials.patients,
            resamples=figures.resamples,
            seed=figures.seed,
        )
        for key, number in judged.numbers.items():
            if key.endswith("AUROC"):
                figures.numbers[f"probe/{share:.0%}/{key}"] = number
                figures.chance[f"probe/{share:.0%}/{key}"] = 0.5
        if "macro/AUROC" in judged.samples:
            figures.samples[f"probe/{share:.0%}/macro/AUROC"] = judged.samples["macro/AUROC"]
    return findings


def _truth(cases: Sequence[ReportCase], findings: Sequence[str]) -> Float[np.ndarray, "reports findings"]:
    value = {"present": 1.0, "unchanged": 1.0, "absent": 0.0, "uncertain": np.nan}
    rows = [[value[case.labels.get(finding, "absent")] for finding in findings] for case in cases]
    return np.asarray(rows, np.float64)


def difference(one: TextEvaluation, other: TextEvaluation, key: str) -> Number:
    """Return how much better one encoder's figure is, with the interval of the paired differences.

    Args:
        one: an evaluation.
        other: another of the same trials, with the same seed and number of resamples.
        key: of the figure.

    Raises:
        UsageError: the figure has no resampled values, or the two were not made alike.
    """
    first, second = one.number(key), other.number(key)
    ours, theirs = one.figures.samples.get(key), other.figures.samples.get(key)
    if ours is None or theirs is None:
        raise UsageError(f"the figure '{key}' has no resampled values to compare.")
    if one.protocol != other.protocol or (first.n, first.patients) != (second.n, second.patients):
        raise UsageError(
            f"'{one.name}' and '{other.name}' were not evaluated on the same {first.n} rows.",
            hint="Evaluate both with the same trials, seed and resamples.",
        )
    gaps = ours - theirs
    low, high = np.nanquantile(gaps, (0.025, 0.975))
    return Number(first.value - second.value, float(low), float(high), first.n, first.patients)
