"""Retrieval figures from a score matrix: expected over every order that ties allow, beside their ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from medvl.errors import UsageError, nearest

__all__ = ["MODES", "Keys", "Mode", "Ranking", "ceiling", "cosine_scores", "relevance"]

Mode = Literal["id", "text", "label"]
MODES: tuple[Mode, ...] = ("id", "text", "label")
_DECIMALS = 6  # float32 encoders repeat themselves to about 1e-7; closer scores are ties


@dataclass(frozen=True)
class Keys:
    """What each item of one side is equal in; -1 is "none" and equals nothing.

    Attributes:
        study: the study of the item.
        text: its normalised report.
        label: its set of findings.
    """

    study: Int[np.ndarray, " items"]
    text: Int[np.ndarray, " items"]
    label: Int[np.ndarray, " items"]

    def take(self, items: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " items"]) -> Keys:
        """Return the keys of some items."""
        return Keys(self.study[items], self.text[items], self.label[items])

    def of(self, mode: str) -> Int[np.ndarray, " items"]:
        """Return the keys of one relevance mode.

        Raises:
            UsageError: the mode is not ``id``, ``text`` or ``label``.
        """
        keys = {"id": self.study, "text": self.text, "label": self.label}
        if mode not in keys:
            raise UsageError(f"unknown relevance '{mode}'.", hint=nearest(mode, keys))
        return keys[mode]


def relevance(queries: Keys, gallery: Keys, *, mode: str) -> Bool[np.ndarray, "queries gallery"]:
    """Say which gallery items are right answers to which queries.

    Args:
        queries: keys of the asking side.
        gallery: keys of the answering side.
        mode: ``id`` (the same study: every image and reconstruction of it), ``text`` (an equal normalised
            report) or ``label`` (an equal set of findings).

    Raises:
        UsageError: an unknown mode.

    Examples:
        >>> keys = Keys(np.array([0, 1]), np.array([5, 5]), np.array([-1, -1]))
        >>> relevance(keys, keys, mode="text").all(), relevance(keys, keys, mode="label").any()
        (np.True_, np.False_)
    """
    left, right = queries.of(mode), gallery.of(mode)
    return (left[:, None] == right[None, :]) & (left[:, None] >= 0)


def cosine_scores(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"]
) -> Float[np.ndarray, "queries gallery"]:
    """Return cosine similarities, rounded to 1e-6 so that equal items tie instead of winning by rounding.

    Two copies of one report, embedded in two batches, differ in the last bits of a float32; without the
    rounding, that difference decides their order and recall depends on the batch size.

    Raises:
        UsageError: a value is NaN or infinite.
    """
    _finite(queries, "query embeddings")
    _finite(gallery, "gallery embeddings")

    def unit(rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
        rows = rows.astype(np.float64)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    return np.round(unit(queries) @ unit(gallery).T, _DECIMALS)


class Ranking:
    r"""The galleries of all queries in order of score, as groups of equal scores.

    A ranking by score with ties stands for all orders that the ties allow, each equally likely; every
    method returns the exact expectation over those orders, one value a query. With a constant score,
    R@K is therefore K/N and the rank (N+1)/2, and no luck of an index helps.

    Notation: in a query's ranking a group has $n$ items, $r$ of them relevant; $a$ items and $b$ relevant
    ones stand before it. $g, n, r$ without a group are those of the first group with $r > 0$; $m$ is the
    number of relevant items of the query.

    Args:
        scores: larger is more similar.

    Raises:
        UsageError: a score is NaN, or there is nothing to rank.

    Examples:
        >>> ranking = Ranking(np.zeros((1, 4)))
        >>> relevant = np.array([[True, False, False, False]])
        >>> ranking.hit(relevant, k=1), ranking.rank(relevant)
        (array([0.25]), array([2.5]))
    """

    def __init__(self, scores: Float[np.ndarray, "queries gallery"]) -> None:
        if 0 in scores.shape:
            raise UsageError(f"the score matrix is {scores.shape}; it needs at least one query and one item.")
        if np.isnan(scores).any():
            raise UsageError(
                f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; no rank can rest on them.",
                hint="Find the inputs that gave them; they may not be replaced by a value.",
            )
        self.queries, self.gallery = scores.shape
        self._order = np.argsort(-scores, axis=1).astype(np.int32)
        ranked = np.take_along_axis(scores, self._order, axis=1)
        new = np.ones(scores.shape, bool)
        new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        self._starts = np.flatnonzero(new)
        self._row = self._starts // self.gallery
        self._before = self._starts - self._row * self.gallery
        self._size = np.diff(self._starts, append=scores.size)
        self._judged: tuple[Any, Any] | None = None  # the last relevance matrix and its counts

    def hit(self, relevant: Bool[np.ndarray, "queries gallery"], *, k: int) -> Float[np.ndarray, " queries"]:
        r"""Return the probability that one of the first ``k`` items is relevant: R@K is its mean.

        With $k' = k - g$ places left in the first group that holds a relevant item,
        $$\Pr = 1 - \prod_{t=0}^{k'-1} \frac{n - r - t}{n - t},$$
        the chance that $k'$ draws without replacement are not all irrelevant; for one relevant item it
        is $\mathrm{clamp}(k'/n, 0, 1)$.
        """
        above, size, right = self._first(relevant)
        places = np.clip(k - above, 0, size)
        missed = np.ones(self.queries)
        for t in range(int(places.max(initial=0))):
            missed *= np.where(t < places, np.maximum(size - right - t, 0) / np.maximum(size - t, 1), 1.0)
        return 1 - missed

    def rank(self, relevant: Bool[np.ndarray, "queries gallery"]) -> Float[np.ndarray, " queries"]:
        r"""Return the expected rank of the first relevant item, $g + (n + 1)/(r + 1)$."""
        above, size, right = self._first(relevant)
        return above + (size + 1) / (right + 1)

    def rank_bounds(
        self, relevant: Bool[np.ndarray, "queries gallery"]
    ) -> tuple[Float[np.ndarray, " queries"], Float[np.ndarray, " queries"]]:
        """Return the rank if ties fall well, $g + 1$, and if they fall badly, $g + n - r + 1$."""
        above, size, right = self._first(relevant)
        return (above + 1).astype(np.float64), (above + size - right + 1).astype(np.float64)

    def average_precision(
        self, relevant: Bool[np.ndarray, "queries gallery"]
    ) -> Float[np.ndarray, " queries"]:
        r"""Return the expected average precision over the whole ranking; mAP is its mean.

        Place $j$ of a group is relevant with probability $r/n$ and then has, besides itself, $b$ and
        $(j-1)(r-1)/(n-1)$ expected relevant items up to it (McSherry and Najork 2008):
        $$\frac1m \sum_\text{groups} \frac rn \sum_{j=1}^n \frac{b + 1 + (j-1)\frac{r-1}{n-1}}{a + j}$$
        and with the harmonic numbers $H$, $\sum_j \frac{1}{a+j} = H_{a+n} - H_a$ and
        $\sum_j \frac{j-1}{a+j} = n - (a+1)(H_{a+n} - H_a)$.
        """
        right, total = self._counts(relevant)
        before = np.cumsum(right) - right
        before -= np.concatenate([[0], np.cumsum(total)[:-1]])[self._row]
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.gallery + 1))])
        size, ahead = self._size, self._before
        inverse = harmonic[ahead + size] - harmonic[ahead]
        within = np.where(size > 1, (right - 1) / np.maximum(size - 1, 1), 0.0)
        gain = right / size * ((before + 1) * inverse + within * (size - (ahead + 1) * inverse))
        return np.bincount(self._row, weights=gain, minlength=self.queries) / total

    def precision(
        self, relevant: Bool[np.ndarray, "queries gallery"], *, k: int
    ) -> Float[np.ndarray, " queries"]:
        """Return the expected share of relevant items among the first ``k``: P@K is its mean.

        Raises:
            UsageError: the gallery holds fewer than ``k`` items.
        """
        if not 1 <= k <= self.gallery:
            raise UsageError(f"P@{k} is asked of a gallery of {self.gallery}; allowed is 1…{self.gallery}.")
        right, _ = self._counts(relevant)
        places = np.clip(k - self._before, 0, self._size)
        return np.bincount(self._row, weights=places * right / self._size, minlength=self.queries) / k

    def _counts(
        self, relevant: Bool[np.ndarray, "queries gallery"]
    ) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, " queries"]]:
        if relevant.shape != (self.queries, self.gallery):
            raise UsageError(
                f"the relevance matrix is {relevant.shape}, the scores are {(self.queries, self.gallery)}."
            )
        if self._judged is not None and self._judged[0] is relevant:
            return self._judged[1]
        total = relevant.sum(1)
        if (total == 0).any():
            raise UsageError(
                f"{int((total == 0).sum())} of {self.queries} queries have no relevant item in the gallery.",
                hint="Leave those queries out and count them.",
            )
        ranked = np.take_along_axis(relevant, self._order, axis=1).ravel()
        counts = np.add.reduceat(ranked, self._starts, dtype=np.int64), total
        self._judged = relevant, counts
        return counts

    def _first(
        self, relevant: Bool[np.ndarray, "queries gallery"]
    ) -> tuple[Int[np.ndarray, " queries"], Int[np.ndarray, " queries"], Int[np.ndarray, " queries"]]:
        right, _ = self._counts(relevant)
        holds = np.flatnonzero(right)
        first = holds[np.append(True, np.diff(self._row[holds]) > 0)]
        return self._before[first], self._size[first], right[first]


def ceiling(classes: Sequence[int] | Int[np.ndarray, " queries"], *, k: int) -> float:
    r"""Return the mean of $\min(K, m)/m$, the most that R@K by study can reach.

    A query whose class of equal items has $m$ members cannot be told from the other $m - 1$; the best
    a model can do is to rank them first, in any order.

    Args:
        classes: the class of each query in a gallery of the same items.
        k: K.

    Examples:
        >>> ceiling([0, 0, 1], k=1)
        0.6666666666666666
    """
    _, index, sizes = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    members = sizes[index]
    return float((np.minimum(k, members) / members).mean())


def _finite(values: Float[np.ndarray, "rows dim"], what: str) -> None:
    if not np.isfinite(values).all():
        rows = int((~np.isfinite(values)).any(1).sum())
        raise UsageError(
            f"{rows} of {len(values)} {what} hold NaN or infinity; a figure over them means nothing.",
            hint="Find the inputs that gave them; they may not be replaced by a value.",
        )
