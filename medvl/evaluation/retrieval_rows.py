"""A retrieval table: the model beside chance, shuffled pairs, a label-only oracle and the ceiling."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medvl.evaluation.bootstrap import Bootstrap, Number, spread
from medvl.evaluation.retrieval import MODES, Keys, Mode, Ranking, relevance

__all__ = ["RECALL_AT", "Direction", "direction_numbers", "gallery_numbers", "sideways_numbers"]

RECALL_AT = (1, 5, 10)
PRECISION_AT = (5, 10, 50)
GALLERIES = (100, 1000)
_DRAWS = 20
_GALLERY_DRAWS = 100
_DEALT_QUERIES = 500


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval.

    Attributes:
        scores: queries by gallery.
        queries, gallery: what the items are equal in.
        patients: the patient of each query.
        others: score matrices of other models on the same queries and gallery, by row name.
    """

    scores: Float[np.ndarray, "queries gallery"]
    queries: Keys
    gallery: Keys
    patients: Collection[Any]
    others: Mapping[str, Float[np.ndarray, "queries gallery"]] = field(default_factory=dict)


def direction_numbers(
    direction: Direction, *, resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, Number], dict[str, int]]:
    """Return the figures of one direction and how many queries each relevance mode leaves out.

    Keys are ``<mode>/<metric>/<row>``. Rows: ``model``; those of ``others``; ``chance`` (a constant
    score, in closed form); ``shuffled`` (the right answers dealt to at most 500 queries at random; mean
    and percentiles over 20 deals); ``labels`` (an oracle that knows the set of findings and nothing else);
    ``ceiling`` (an oracle that knows the words of the report; equal reports tie; in the mode ``label``, where
    words do not decide, the right answers first, so P@K is the mean of min(K, m)/K). ``normalised`` is the
    model over the ceiling.

    Args:
        direction: scores and keys.
        resamples: of the patient bootstrap; queries are resampled, the gallery stays.
        seed: of the bootstrap and of the deals.
    """
    numbers: dict[str, Number] = {}
    relevant = {mode: relevance(direction.queries, direction.gallery, mode=mode) for mode in MODES}
    left_out: dict[str, int] = {mode: int((~right.any(1)).sum()) for mode, right in relevant.items()}
    asked = {mode: right.any(1) for mode, right in relevant.items() if right.any()}
    patients = np.asarray([str(patient) for patient in direction.patients])
    for row, scores, modes in _rows(direction):
        whole = Ranking(scores)  # one at a time: a ranking takes some 30 bytes a score
        for mode, kept in asked.items():
            if mode not in modes:
                continue
            bootstrap = None
            if row in ("model", *direction.others):
                bootstrap = Bootstrap(patients[kept].tolist(), resamples=resamples, seed=seed)
            ranking = whole if kept.all() else Ranking(scores[kept])
            for metric, number in _figures(ranking, relevant[mode][kept], mode, bootstrap).items():
                numbers[f"{mode}/{metric}/{row}"] = number
    random = np.random.default_rng([seed, 1])
    for mode, kept in asked.items():
        for metric, number in _shuffled(direction.scores[kept], relevant[mode][kept], mode, random).items():
            numbers[f"{mode}/{metric}/shuffled"] = number
        for k in _cut(len(direction.gallery.study)):
            best = numbers[f"{mode}/R@{k}/ceiling"].value
            numbers[f"{mode}/R@{k}/normalised"] = numbers[f"{mode}/R@{k}/model"].scaled(1 / best)
    return numbers, left_out


def gallery_numbers(direction: Direction, *, seed: int = 0) -> dict[str, Number]:
    """Return recall in fixed random galleries of 100 and 1,000 studies, 100 draws each, where there are more.

    Keys are ``<mode>/R@<K>/gallery-<size>``; the interval holds 95 % of the draws.
    """
    numbers: dict[str, Number] = {}
    studies = np.unique(direction.gallery.study)
    for size in GALLERIES:
        if len(studies) <= size:
            continue
        random = np.random.default_rng([seed, size])
        found: dict[str, list[float]] = {}
        for _ in range(_GALLERY_DRAWS):
            chosen = random.choice(studies, size=size, replace=False)
            rows = np.flatnonzero(np.isin(direction.queries.study, chosen))
            columns = np.flatnonzero(np.isin(direction.gallery.study, chosen))
            ranking = Ranking(direction.scores[np.ix_(rows, columns)])
            for mode in ("id", "text"):
                relevant = relevance(direction.queries.take(rows), direction.gallery.take(columns), mode=mode)
                for k in RECALL_AT:
                    hits = ranking.hit(relevant, k=k)
                    found.setdefault(f"{mode}/R@{k}/gallery-{size}", []).append(float(hits.mean()))
        numbers |= {key: spread(values, n=size) for key, values in found.items()}
    return numbers


def sideways_numbers(
    scores: Float[np.ndarray, "images images"],
    keys: Keys,
    *,
    patients: Collection[Any],
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Number], dict[str, int]]:
    """Return how well images find other images, and how many queries each relevance mode leaves out.

    In the mode ``id`` the right answers are the other images of the study, such as a second reconstruction.
    In the others they are images of *other* studies with an equal report or equal findings, and those of
    the query's own study are no candidates. Rows: ``model`` and ``chance``, a constant score in closed form.

    Args:
        scores: cosine of each image with each.
        keys: what the images are equal in.
        patients: the patient of each image.
        resamples: of the patient bootstrap.
        seed: of the bootstrap.
    """
    numbers: dict[str, Number] = {}
    left_out: dict[str, int] = {}
    people = np.asarray([str(patient) for patient in patients])
    for mode in MODES:
        same = np.eye(len(scores), dtype=bool) if mode == "id" else relevance(keys, keys, mode="id")
        relevant = relevance(keys, keys, mode=mode) & ~same
        kept = relevant.any(1)
        left_out[mode] = int((~kept).sum())
        if not kept.any():
            continue
        bootstrap = Bootstrap(people[kept].tolist(), resamples=resamples, seed=seed)
        for row, values in (("model", scores), ("chance", np.zeros_like(scores, np.float64))):
            # Below every cosine: what is no candidate comes after all others, where no right answer is.
            ranking = Ranking(np.where(same, -2.0, values)[kept])
            figures = _figures(ranking, relevant[kept], mode, bootstrap if row == "model" else None)
            numbers |= {f"{mode}/{metric}/{row}": number for metric, number in figures.items()}
    return numbers, left_out


def _cut(gallery: int) -> tuple[int, ...]:
    return tuple(k for k in RECALL_AT if k <= gallery)


def _rows(
    direction: Direction,
) -> Iterator[tuple[str, Float[np.ndarray, "queries gallery"], tuple[Mode, ...]]]:
    """Yield each row's scores with the relevance modes that they speak for."""
    yield "model", direction.scores, MODES
    for row, scores in direction.others.items():
        yield row, scores, MODES
    yield "chance", np.zeros_like(direction.scores, np.float64), MODES
    queries, gallery = direction.queries, direction.gallery
    findings = relevance(queries, gallery, mode="label").astype(np.float64)
    if (queries.label >= 0).any():
        yield "labels", findings, MODES
    same = relevance(queries, gallery, mode="text") | relevance(queries, gallery, mode="id")
    yield "ceiling", same.astype(np.float64), ("id", "text")
    yield "ceiling", findings, ("label",)


def _per_query(
    ranking: Ranking, relevant: Bool[np.ndarray, "queries gallery"], mode: str
) -> dict[str, Float[np.ndarray, " queries"]]:
    values = {f"R@{k}": ranking.hit(relevant, k=k) for k in _cut(ranking.gallery)}
    values["MeanR"] = ranking.rank(relevant)
    values["mAP"] = ranking.average_precision(relevant)
    if mode == "label":
        values |= {f"P@{k}": ranking.precision(relevant, k=k) for k in PRECISION_AT if k <= ranking.gallery}
    return values


def _figures(
    ranking: Ranking,
    relevant: Bool[np.ndarray, "queries gallery"],
    mode: str,
    bootstrap: Bootstrap | None,
) -> dict[str, Number]:
    values = _per_query(ranking, relevant, mode)
    n = ranking.queries
    if bootstrap is None:  # a closed form has no interval
        numbers = {name: Number(float(value.mean()), n=n) for name, value in values.items()}
        return numbers | {"MedR": Number(float(np.median(values["MeanR"])), n=n)}
    numbers = {name: bootstrap.mean(value) for name, value in values.items()}
    numbers["MedR"] = bootstrap.median(values["MeanR"])
    best, worst = ranking.rank_bounds(relevant)
    numbers["MedR-optimistic"] = bootstrap.median(best)
    numbers["MedR-pessimistic"] = bootstrap.median(worst)
    return numbers


def _shuffled(
    scores: Float[np.ndarray, "queries gallery"],
    relevant: Bool[np.ndarray, "queries gallery"],
    mode: str,
    random: np.random.Generator,
) -> dict[str, Number]:
    found: dict[str, list[float]] = {}
    rows = np.sort(random.permutation(len(relevant))[:_DEALT_QUERIES])
    ranking = Ranking(scores[rows])
    for _ in range(_DRAWS):
        dealt = relevant[random.permutation(len(relevant))[: len(rows)]]
        values = _per_query(ranking, dealt, mode)
        for name, value in values.items():
            found.setdefault(name, []).append(float(value.mean()))
        found.setdefault("MedR", []).append(float(np.median(values["MeanR"])))
    return {name: spread(values, n=len(rows)) for name, values in found.items()}
