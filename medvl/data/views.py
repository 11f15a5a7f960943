"""Which two pictures and which two texts of a study a batch of two views compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Look", "plane", "two_images", "two_texts"]

_FRONTAL, _UNKNOWN, _LATERAL = range(3)


@dataclass(frozen=True)
class Look:
    """One row of a batch: whose picture and whose words it shows.

    Attributes:
        epoch: what is drawn anew each epoch depends on it.
        image: row of the record whose picture is shown.
        text: row of the record whose words are read.
        view: 0 or 1: the first or the second row of its study.
        own: False where the picture is the one of the first row again.
    """

    epoch: int
    image: int
    text: int
    view: int = 0
    own: bool = True


def plane(view: str | None) -> int:
    """Return 0 for a frontal projection, 2 for a lateral one, 1 where the view does not tell.

    Examples:
        >>> [plane(view) for view in ("PA", "AP AXIAL", "Frontal", None, "LL", "LATERAL")]
        [0, 0, 0, 1, 2, 2]
    """
    word = (view or "").upper()
    if word.startswith(("PA", "AP")) or "FRONTAL" in word:  # PS3.3 C.8.7.1.1.1 View Position
        return _FRONTAL
    return _LATERAL if word in ("L", "LL", "RL") or word.startswith("LAT") else _UNKNOWN


def two_images(views: Sequence[str | None], stream: np.random.Generator) -> tuple[int, int]:
    """Draw the first and the second image of a study; the same one twice where there is only one.

    The first is drawn among the frontal images and the second, which is another one, among the lateral
    images. Without frontal images the first is drawn among those whose view is not stated, and without these
    too among the lateral ones; for the second the other way round.

    Args:
        views: view of each image of the study.
        stream: what is drawn from.

    Examples:
        >>> two_images(["LL", "PA"], np.random.default_rng(0))
        (1, 0)
        >>> two_images(["PA"], np.random.default_rng(0))
        (0, 0)
    """
    planes = [plane(view) for view in views]
    first = _drawn([i for i, each in enumerate(planes) if each == min(planes)], stream)
    others = [i for i in range(len(planes)) if i != first]
    if not others:
        return first, first
    last = max(planes[i] for i in others)
    return first, _drawn([i for i in others if planes[i] == last], stream)


def two_texts(
    sections: Sequence[str], stream: np.random.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose the sentences of the first and of the second text of a report.

    They are the findings and the impression where the report has both; its other sections are then not
    read. Otherwise they are two random halves, of an odd number of sentences the first with one more. A
    single sentence is both texts.

    Args:
        sections: name of the section of each sentence, "" where it is not known.
        stream: what the halves are drawn from.

    Returns:
        The places of the sentences, in the order of the report.

    Examples:
        >>> two_texts(["history", "findings", "findings", "impression"], np.random.default_rng(0))
        ((1, 2), (3,))
        >>> first, second = two_texts([""] * 5, np.random.default_rng(0))
        >>> len(first), sorted(first + second)
        (3, [0, 1, 2, 3, 4])

    Source: You et al. 2023 (CXR-CLIP), arXiv 2310.13292, for findings and impression. Results change
    with the choice of the sections, so it is a rule and not an option.
    """
    findings, impression = (
        tuple(i for i, section in enumerate(sections) if section == name)
        for name in ("findings", "impression")
    )
    if findings and impression:
        return findings, impression
    if len(sections) == 1:
        return (0,), (0,)
    order = stream.permutation(len(sections)).tolist()
    half = (len(order) + 1) // 2
    return tuple(sorted(order[:half])), tuple(sorted(order[half:]))


def _drawn(choices: Sequence[int], stream: np.random.Generator) -> int:
    return choices[int(stream.integers(len(choices)))]
