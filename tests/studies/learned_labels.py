"""Classifiers that learn the 18 CT labels from other groups of reports, to be set beside the rules.

Each of five folds of groups is predicted by a classifier that saw the four others only; its thresholds come
from predictions within those four, never from the fold. So every report is held out once, and each method
stands on the same reports as the rules, which learn nothing.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from medvl.preprocess.reports.findings import describes_image, said
from medvl.records import Report

FOLDS = 5
STATES = ("present", "unchanged", "uncertain", "absent")


def words_of(reports: list[Report]) -> Callable[[np.ndarray], sparse.csr_matrix]:
    """Return TF-IDF of words and word pairs; the vocabulary is that of the given training rows."""
    texts = [
        " ".join(report.sentence_text(s) for s in report.sentences if describes_image(s)).lower()
        for report in reports
    ]

    def features(train: np.ndarray) -> sparse.csr_matrix:
        counted = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
        counted.fit([texts[row] for row in train])
        return counted.transform(texts)

    return features


def states_of(reports: list[Report], findings: tuple[str, ...]) -> np.ndarray:
    """Return what the rules say: one column for each finding and state."""
    table = np.zeros((len(reports), len(findings) * len(STATES)), np.float32)
    for row, report in zip(table, reports, strict=True):
        for finding, state in said(report, vocabulary="ct").items():
            row[findings.index(finding) * len(STATES) + STATES.index(state)] = 1.0
    return table


def vectors_of(reports: list[Report], source: str) -> np.ndarray:
    """Return one vector a report: the mean over its sentences, each embedded once."""
    from medvl.language.embed import TextEmbedder

    embed = TextEmbedder.load(source, max_tokens=64)
    texts = [[r.sentence_text(s) for s in r.sentences if describes_image(s)] for r in reports]
    distinct = sorted({sentence for text in texts for sentence in text})
    rows = dict(zip(distinct, embed([[sentence] for sentence in distinct]), strict=True))
    means = np.stack(
        [np.mean([rows[s] for s in text], axis=0) if text else np.zeros(embed.width) for text in texts]
    )
    spread = np.stack(
        [np.max([rows[s] for s in text], axis=0) if text else np.zeros(embed.width) for text in texts]
    )
    return np.hstack([means, spread]).astype(np.float32)


def held_out(
    features: Callable[[np.ndarray], np.ndarray | sparse.csr_matrix], truth: np.ndarray, groups: list[str]
) -> np.ndarray:
    """Return predictions for every report by classifiers that never saw its group."""
    found = np.zeros(truth.shape, bool)
    names = np.asarray(groups)
    for train, test in GroupKFold(FOLDS).split(truth, groups=names):
        values = features(train)
        for label in range(truth.shape[1]):
            wanted = truth[:, label]
            inner = np.zeros(len(train))
            for mine, other in GroupKFold(FOLDS - 1).split(train, groups=names[train]):
                inner[other] = scores(values, wanted, train[mine], train[other])
            threshold = best_threshold(inner, wanted[train])
            found[test, label] = scores(values, wanted, train, test) >= threshold
    return found


def scores(
    values: np.ndarray | sparse.csr_matrix, wanted: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Fit on some rows and return the scores of others."""
    model = LogisticRegression(
        C=10.0, class_weight="balanced", max_iter=1000, solver="liblinear", random_state=0
    )
    return model.fit(values[train], wanted[train]).decision_function(values[test])


def best_threshold(score: np.ndarray, wanted: np.ndarray) -> float:
    """Return the threshold of the best F1; the middle between two scores."""
    order = np.argsort(-score, kind="stable")
    right = np.cumsum(wanted[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + wanted.sum())
    place = int(np.argmax(f1))
    after = score[order[min(place + 1, len(order) - 1)]]
    return float((score[order[place]] + after) / 2)


def learned(
    reports: list[Report], truth: list[set[str]], groups: list[str], findings: tuple[str, ...]
) -> dict[str, list[set[str]]]:
    """Return what each learned classifier predicts for the held-out reports."""
    table = np.array([[finding in row for finding in findings] for row in truth])
    words, states, vectors = words_of(reports), states_of(reports, findings), vectors_of(reports, "minilm")
    methods: dict[str, Callable[[np.ndarray], np.ndarray | sparse.csr_matrix]] = {
        "TF-IDF": words,
        "MiniLM of sentences": lambda train: vectors,
        "rules' states": lambda train: states,
        "rules' states and TF-IDF": lambda train: sparse.csr_matrix(sparse.hstack([words(train), states])),
    }
    return {
        name: [{f for f, yes in zip(findings, row, strict=True) if yes} for row in held_out(f, table, groups)]
        for name, f in methods.items()
    }
