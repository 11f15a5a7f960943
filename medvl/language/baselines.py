"""Encoders without a language model, to stand beside one: hashed words, and TF-IDF with an SVD."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from medvl.corpus import ReportCase
from medvl.errors import UsageError

__all__ = ["Embed", "hashed_words", "tf_idf"]

Embed: TypeAlias = Callable[[Sequence[Sequence[str]]], Float32[np.ndarray, "texts width"]]
"""Lists of sentences to one row each."""

_WORD = re.compile(r"[^\W_]+|[^\w\s]")


def hashed_words(*, width: int = 1024) -> Embed:
    """Return an encoder that counts words into hashed places with a sign; nothing is learned.

    Args:
        width: places.

    Raises:
        UsageError: fewer than one place.

    Examples:
        >>> rows = hashed_words()([["No effusion."], ["effusion no ."], ["An effusion."]])
        >>> bool((rows[0] == rows[1]).all()), bool((rows[0] == rows[2]).all())
        (True, False)
    """
    if width < 1:
        raise UsageError(f"the width is {width}; allowed is at least 1.")

    def embed(texts: Sequence[Sequence[str]]) -> Float32[np.ndarray, "texts width"]:
        rows = np.zeros((len(texts), width), np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(" ".join(text).lower()):
                place = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                rows[row, place % width] += 1 if place >> 63 else -1
        return rows

    return embed


def tf_idf(cases: Sequence[ReportCase], *, width: int = 256, seed: int = 0) -> Embed:
    """Fit TF-IDF of words and word pairs with a truncated SVD on the training reports.

    Args:
        cases: a corpus; only its ``train`` reports are read.
        width: of the SVD; less where there are fewer reports.
        seed: of the SVD.

    Raises:
        UsageError: fewer than two training reports.
    """
    train = [" ".join(case.sentences) for case in cases if case.split == "train"]
    if len(train) < 2:
        raise UsageError(f"TF-IDF has {len(train)} training reports; it needs at least 2.")
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    weighted = counts.fit_transform(train)
    svd = TruncatedSVD(min(width, min(weighted.shape) - 1), random_state=seed).fit(weighted)

    def embed(texts: Sequence[Sequence[str]]) -> Float32[np.ndarray, "texts width"]:
        rows = svd.transform(counts.transform([" ".join(text) for text in texts]))
        return np.asarray(rows, np.float32)

    return embed
