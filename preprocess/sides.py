"""Left and right: what a view, a sentence and a box say of the patient's side, and where they disagree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

__all__ = ["VOLUME_AXES", "box_against_words", "side_conflict", "side_of_view", "side_of_words"]

VOLUME_AXES = 3
"""Axes of a stored array that is a volume."""

Side = Literal["L", "R"]

_VIEWS: dict[str, Side] = {"LL": "L", "RL": "R"}
"""Left and right lateral, PS3.3 C.8.1.1 View Position."""
_LEFT = re.compile(r"\b(left|lt)\b", re.IGNORECASE)
_RIGHT = re.compile(r"\b(right|rt)\b", re.IGNORECASE)
_BOTH = re.compile(r"\b(bilateral(ly)?|both|either|midline|central(ly)?|biapical|bibasal|bibasilar)\b", re.I)
_NOT_SAID = re.compile(
    r"\b(no|not|without|absent|free|resolved|clear|cannot|negative|rather|versus|vs)\b", re.I
)
_MARGIN = 0.1
"""Share of the width by which a box must lie beyond the middle: films are rarely centred exactly."""


def side_of_view(view: str | None) -> Side | None:
    """Return the side that a view names.

    Examples:
        >>> side_of_view("LL"), side_of_view("PA")
        ('L', None)
    """
    return _VIEWS.get((view or "").upper())


def side_of_words(sentence: str) -> Side | None:
    """Return the only side that a sentence speaks of; None for none, for both, and where it negates.

    Examples:
        >>> side_of_words("A nodule in the left upper lobe.")
        'L'
        >>> side_of_words("Left and right effusions."), side_of_words("No left effusion.")
        (None, None)
    """
    if _BOTH.search(sentence) or _NOT_SAID.search(sentence):
        return None
    left, right = bool(_LEFT.search(sentence)), bool(_RIGHT.search(sentence))
    if left == right:
        return None
    return "L" if left else "R"


def box_against_words(boxes: Iterable[Mapping[str, Any]], sentences: Iterable[str], width: int) -> bool:
    """Whether a frontal film has boxes of a finding on the side opposite to the only one said for it.

    A film is shown as if the patient faced the reader: the patient's left is the right of the image. It is a
    conflict only when every sentence that names the finding names one and the same side, and every box of
    the finding lies clearly on the other.

    Args:
        boxes: with ``label``, ``x0`` and ``x1``, in pixels of the stored array.
        sentences: of the report.
        width: of the stored array, in pixels.

    Examples:
        >>> box = {"label": "nodule", "x0": 5, "x1": 15}
        >>> box_against_words([box], ["A nodule in the left lung."], 100)
        True
        >>> box_against_words([box], ["A nodule in the right lung."], 100)
        False
    """
    words = [sentence.casefold() for sentence in sentences]
    middles: dict[str, list[float]] = {}
    for box in boxes:
        middles.setdefault(box["label"], []).append((box["x0"] + box["x1"]) / 2 / width - 0.5)
    for label, places in middles.items():
        if all(place < -_MARGIN for place in places):
            opposite = "L"
        elif all(place > _MARGIN for place in places):
            opposite = "R"
        else:
            continue
        name = label.casefold().replace("_", " ")
        whole = re.compile(rf"\b{re.escape(name)}s?\b")
        named = [sentence for sentence in words if name in sentence and whole.search(sentence)]
        if named and all(side_of_words(sentence) == opposite for sentence in named):
            return True
    return False


def side_conflict(boxes: Sequence[Mapping[str, Any]], sentences: Iterable[str], shape: Sequence[int]) -> bool:
    """Whether boxes lie on the other side than the report says, on a frontal film or in a volume.

    Args:
        boxes: with ``label``, ``x0`` and ``x1``; of a volume along its first axis, to the patient's right.
        sentences: of the report.
        shape: of the stored array.

    Examples:
        >>> box = {"label": "nodule", "x0": 5, "x1": 15}
        >>> side_conflict([box], ["A nodule in the left lung."], (100, 80, 60))
        False
    """
    if len(shape) != VOLUME_AXES:
        return box_against_words(boxes, sentences, shape[-1])
    width = shape[0]
    mirrored = [dict(box) | {"x0": width - box["x1"], "x1": width - box["x0"]} for box in boxes]
    return box_against_words(mirrored, sentences, width)
