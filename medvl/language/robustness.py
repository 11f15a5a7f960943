"""How an encoder takes other wordings: does it find the report again, move little, and notice an error?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.evaluation.classification import classify
from medvl.evaluation.retrieval import Ranking, cosine_scores
from medvl.language.trials import PARTS, Text, Trials, text_key

__all__ = ["Figures", "error_figures", "impression_figures", "retrieval_figures"]

KS = (1, 5)
PART_NAMES = {"train": "seen", "test": "unseen"}
"""How tables call the rules: those that training may use, and those that are held out."""
_PARTIAL = ("impression", "findings")
_DECIMALS = 6

Vectors = Mapping[Text, Float[np.ndarray, " width"]]


@dataclass
class Figures:
    """Figures by key, with what differences between two encoders need.

    Attributes:
        numbers: the figures with their intervals.
        samples: resampled values of those that have any.
        chance: what an encoder that gives every text the same vector gets.
        resamples, seed: of the patient bootstrap; equal for encoders that are compared.
    """

    numbers: dict[str, Number] = field(default_factory=dict)
    samples: dict[str, Float[np.ndarray, " resamples"]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    resamples: int = 2000
    seed: int = 0

    def mean(
        self, key: str, values: Float[np.ndarray, " rows"], patients: Sequence[str], *, chance: float | None
    ) -> None:
        """Add the mean of per-row values."""
        bootstrap = Bootstrap(patients, resamples=self.resamples, seed=self.seed)
        sums = np.bincount(bootstrap.codes, weights=values, minlength=bootstrap.count)
        sizes = np.bincount(bootstrap.codes, minlength=bootstrap.count)
        samples = bootstrap.draws @ sums / (bootstrap.draws @ sizes)
        self.numbers[key] = bootstrap.number(float(values.mean()), samples)
        self.samples[key] = samples
        if chance is not None:
            self.chance[key] = chance

    def median(
        self, key: str, values: Float[np.ndarray, " rows"], patients: Sequence[str], *, chance: float
    ) -> None:
        """Add the median of per-row values."""
        bootstrap = Bootstrap(patients, resamples=self.resamples, seed=self.seed)
        self.numbers[key] = bootstrap.median(values)
        self.chance[key] = chance

    def ranking(
        self,
        key: str,
        scores: Float[np.ndarray, "queries gallery"],
        relevant: Bool[np.ndarray, "queries gallery"],
        patients: Sequence[str],
    ) -> None:
        """Add R@1, R@5 and MedR of a score matrix, beside their chance."""
        ranking, level = Ranking(scores), Ranking(np.zeros_like(scores))
        for k in KS:
            chance = float(level.hit(relevant, k=k).mean())
            self.mean(f"{key}/R@{k}", ranking.hit(relevant, k=k), patients, chance=chance)
        chance = float(np.median(level.rank(relevant)))
        self.median(f"{key}/MedR", ranking.rank(relevant), patients, chance=chance)


def _rows(texts: Sequence[Text], vectors: Vectors) -> Float[np.ndarray, "texts width"]:
    return np.stack([vectors[text] for text in texts])


def retrieval_figures(figures: Figures, trials: Trials, vectors: Vectors) -> None:
    """Ask for each report with its other wordings, among all held-out reports; and measure how far they move.

    Right are the report itself and every report that the wording fits as well: one whose own wording of the
    kind has the same words. ``drop`` is the mean of (1 − cosine of wording and report) / (1 − mean cosine of
    different reports): 0 for an encoder that wording does not move, 1 for one that moves a report as far as
    another report is.
    """
    originals = _rows([case.sentences for case in trials.cases], vectors)
    between = cosine_scores(originals, originals)
    others = between[~np.eye(len(originals), dtype=bool)].mean()
    people = trials.patients
    for part in PARTS:
        matrices, truths, asked = [], [], []
        for kind in sorted(kind for where, kind in trials.variants if where == part):
            table = trials.variants[part, kind]
            rows = sorted(table)
            scores = cosine_scores(_rows([table[row] for row in rows], vectors), originals)
            keys = np.asarray([text_key(table[row]) if row in table else "" for row in range(len(people))])
            relevant = keys[rows][:, None] == keys[None, :]
            patients = [people[row] for row in rows]
            name = PART_NAMES[part]
            figures.ranking(f"retrieval/{name}/{kind}", scores, relevant, patients)
            if kind not in _PARTIAL:
                moved = (1 - scores[np.arange(len(rows)), rows]) / max(1 - others, 1e-9)
                figures.mean(f"drop/{name}/{kind}", moved, patients, chance=None)
            matrices.append(scores)
            truths.append(relevant)
            asked += patients
        if matrices:
            figures.ranking(
                f"retrieval/{PART_NAMES[part]}/all", np.concatenate(matrices), np.concatenate(truths), asked
            )


def error_figures(figures: Figures, trials: Trials, vectors: Vectors) -> None:
    """Compare a report with a paraphrase of it and with a report that has one error.

    ``error/seen`` and ``error/unseen`` ask whether the paraphrase, by rules of training or held-out rules,
    is nearer to the report than the report's own copy with one error, which shares nearly all its words.
    ``error/matched`` asks whether the held-out paraphrase is nearer than the same paraphrase with an error:
    there only the fact differs. Each is the share of pairs in the right order, ties half; ``AUROC`` is over
    all pairs at once.
    """
    said = {part: trials.variants.get((part, "paraphrase"), {}) for part in PARTS}
    groups = [(PART_NAMES[part], said[part], trials.errors) for part in PARTS]
    for name, right, wrong in [*groups, ("matched", said["test"], trials.twisted)]:
        pooled: dict[str, list[tuple[float, float, str]]] = {"all": []}
        for part, kind in sorted(wrong):
            rows = sorted(wrong[part, kind].keys() & right.keys())
            if not rows:
                continue
            pairs = [_pair(trials, vectors, row, right[row], wrong[part, kind][row]) for row in rows]
            pooled[kind] = pairs
            pooled.setdefault(f"{PART_NAMES[part]} errors", []).extend(pairs)
            pooled["all"].extend(pairs)
        for kind, pairs in pooled.items():
            if pairs:
                _errors(figures, f"error/{name}/{kind}", pairs, area=kind == "all")


def _pair(trials: Trials, vectors: Vectors, row: int, right: Text, wrong: Text) -> tuple[float, float, str]:
    case = trials.cases[row]
    anchor = vectors[case.sentences].astype(np.float64)

    def similar(text: Text) -> float:
        other = vectors[text].astype(np.float64)
        length = max(float(np.linalg.norm(anchor) * np.linalg.norm(other)), 1e-12)
        return round(float(anchor @ other / length), _DECIMALS)

    return similar(right), similar(wrong), case.patient_id


def _errors(figures: Figures, key: str, pairs: Sequence[tuple[float, float, str]], *, area: bool) -> None:
    right, wrong = (np.asarray(column, np.float64) for column in list(zip(*pairs, strict=True))[:2])
    patients = [pair[2] for pair in pairs]
    figures.mean(f"{key}/accuracy", (right > wrong) + (right == wrong) / 2, patients, chance=0.5)
    if area:
        judged = classify(
            np.repeat([1.0, 0.0], len(pairs))[:, None],
            np.concatenate([right, wrong])[:, None],
            findings=["same"],
            patients=[*patients, *patients],
            resamples=figures.resamples,
            seed=figures.seed,
        )
        figures.numbers[f"{key}/AUROC"] = judged.numbers["macro/AUROC"]
        figures.samples[f"{key}/AUROC"] = judged.samples["macro/AUROC"]
        figures.chance[f"{key}/AUROC"] = 0.5


def impression_figures(figures: Figures, trials: Trials, vectors: Vectors) -> None:
    """Ask for the impression with the findings; an equal impression of another report is right, too."""
    both = [case for case in trials.cases if case.findings and case.impression]
    if len(both) < 2:
        return
    scores = cosine_scores(
        _rows([case.findings for case in both], vectors), _rows([case.impression for case in both], vectors)
    )
    keys = np.asarray([text_key(case.impression) for case in both])
    figures.ranking("impression", scores, keys[:, None] == keys[None, :], [case.patient_id for case in both])
