"""What a report says and no rewording may move: states of findings, numbers with units, sides."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvl.preprocess.reports.findings import VOCABULARIES, sentence_states
from medvl.records import LabelState
from medvl.specs import PLACEHOLDER
from medvl.specs.abbreviations import expansions

__all__ = ["Facts", "contradicts", "degrees", "expanded", "facts_of", "moved"]

_STRENGTH: dict[LabelState, int] = {"absent": 0, "uncertain": 1, "unchanged": 2, "present": 3}
_UNIT = r"mm|cm|m?l|HU|%|degrees?|hours?|days?|weeks?|months?|years?"
_NUMBER = re.compile(rf"\d+(?:[.,]\d+)*(?:\s*(?:{_UNIT})(?![a-z]))?", re.IGNORECASE)
_WORDED = re.compile(r"\b(?:two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)
_SIDES = {
    "left": "left",
    "left-sided": "left",
    "right": "right",
    "right-sided": "right",
    "lt": "left",
    "rt": "right",
    "bilateral": "both",
    "bilaterally": "both",
    "both": "both",
    "each": "both",
    "biapical": "both",
    "bibasilar": "both",
}
_SIDE = re.compile(rf"\b(?:{'|'.join(sorted(_SIDES, key=len, reverse=True))})\b", re.IGNORECASE)
_DEGREES = {
    "slight": "mild mildly slight slightly minimal minimally small tiny trace minor low-grade subtle",
    "moderate": "moderate moderately",
    "marked": "severe severely large marked markedly extensive massive major high-grade gross grossly",
    "worse": "worse worsening worsened progression progressive",
    "better": "better improving improved improvement regression resolved resolving",
    "more": "increase increased increasing enlarging larger",
    "fewer": "decrease decreased decreasing shrinking smaller",
    "old": "old chronic",
    "new": "new newly acute",
    "several": "multiple several numerous many",
    "single": "single solitary",
    "top": "apex apices apical biapical",
    "bottom": "base bases basal basilar bibasilar",
    **{word: word for word in ("upper", "middle", "lower", "anterior", "posterior", "medial", "lateral")},
    **{word: word for word in ("central", "peripheral", "proximal", "distal")},
}
"""Words of one degree, change, number or place, which a free wording may exchange for one another alone."""
_DEGREE = {word: degree for degree, words in _DEGREES.items() for word in words.split()}
_DEGREE_WORD = re.compile(
    rf"(?<![\w-])(?:{'|'.join(sorted(_DEGREE, key=len, reverse=True))})(?![\w-])", re.IGNORECASE
)
_COMPARATOR = re.compile(
    r"\b(less|greater|more|larger|smaller|bigger|fewer|higher|lower) than\b|\bat (?:least|most)\b|[<>≤≥]",
    re.I,
)


@dataclass(frozen=True)
class Facts:
    """The facts of a text.

    Attributes:
        states: finding to state, of both vocabularies: ``cxr.edema``, ``ct.emphysema`` …
        numbers: each number with its unit, in digits, white space apart.
        sides: how often left, right and both stand in it.
        comparators: "less than" and its like.
        placeholders: those of de-identification.
    """

    states: Mapping[str, LabelState]
    numbers: Counter[str]
    sides: Counter[str]
    comparators: Counter[str]
    placeholders: Counter[str]


def facts_of(sentences: Sequence[str]) -> Facts:
    """Read the facts of a text; abbreviations count as what they stand for.

    Of the states that sentences give one finding, present wins over unchanged, uncertain and absent, in this
    order. ``no_finding`` is left out: it follows from the others.

    Examples:
        >>> facts = facts_of(["A 4 mm nodule in the RUL.", "No effusion."])
        >>> facts.states["cxr.pleural_effusion"], dict(facts.numbers), dict(facts.sides)
        ('absent', {'4mm': 1}, {'right': 1})
    """
    texts = [_facts(sentence) for sentence in sentences]
    if len(texts) == 1:
        return texts[0]
    states: dict[str, LabelState] = {}
    for facts in texts:
        for finding, state in facts.states.items():
            if finding not in states or _STRENGTH[state] > _STRENGTH[states[finding]]:
                states[finding] = state

    counts = [Counter[str]() for _ in range(4)]
    for facts in texts:
        each = (facts.numbers, facts.sides, facts.comparators, facts.placeholders)
        for count, more in zip(counts, each, strict=True):
            if more:
                count.update(more)
    return Facts(states, *counts)


@functools.lru_cache(maxsize=1 << 15)
def _facts(sentence: str) -> Facts:
    text = expanded(sentence)
    states = {
        f"{vocabulary}.{finding}": state
        for vocabulary in VOCABULARIES
        for finding, state in sentence_states(text, vocabulary=vocabulary).items()
        if finding != "no_finding"
    }
    bare = PLACEHOLDER.sub(" ", text)
    numbers = Counter(re.sub(r"\s", "", match[0]).lower() for match in _NUMBER.finditer(bare))
    numbers.update(match[0].lower() for match in _WORDED.finditer(bare))
    return Facts(
        states,
        numbers,
        Counter(_SIDES[match[0].lower()] for match in _SIDE.finditer(bare)),
        Counter(match[0].lower() for match in _COMPARATOR.finditer(bare)),
        Counter(match.lower() for match in PLACEHOLDER.findall(text)),
    )


def expanded(text: str) -> str:
    """Return a text with its unambiguous abbreviations written out.

    Examples:
        >>> expanded("No PTX.")
        'No pneumothorax.'
    """
    for start, end, meaning in sorted(expansions(text, language="en"), reverse=True):
        text = text[:start] + meaning + text[end:]
    return text


def moved(before: Facts, after: Facts) -> str:
    """Return the first fact that is not the same: its kind, or the finding; "" where all are.

    Examples:
        >>> moved(facts_of(["A 4 mm nodule."]), facts_of(["A 40 mm nodule."]))
        'number'
        >>> moved(facts_of(["No effusion."]), facts_of(["Effusion is not seen."]))
        ''
    """
    for kind in ("number", "side", "comparator", "placeholder"):
        if getattr(before, f"{kind}s") != getattr(after, f"{kind}s"):
            return kind
    findings = sorted(before.states.keys() | after.states.keys())
    return next((name for name in findings if before.states.get(name) != after.states.get(name)), "")


def degrees(text: str) -> Counter[str]:
    """Count what a text says of severity, change, number and place, beside left and right.

    :func:`moved` does not ask this: rules change no such word, but a model that words freely may.

    Examples:
        >>> degrees("Slightly larger RUL nodule.") == degrees("A minimally enlarging upper lobe nodule.")
        True
        >>> degrees("Mild edema.") == degrees("Severe edema.")
        False
    """
    return Counter(_DEGREE[match[0].lower()] for match in _DEGREE_WORD.finditer(expanded(text)))


def contradicts(whole: Facts, part: Facts) -> str:
    """Return the first finding that a part of a report denies or claims against the whole; "" for none.

    Examples:
        >>> contradicts(facts_of(["Left effusion."]), facts_of(["No effusion."]))
        'ct.pleural_effusion'
    """
    return next(
        (
            finding
            for finding, state in sorted(part.states.items())
            if finding in whole.states and (state == "absent") != (whole.states[finding] == "absent")
        ),
        "",
    )
