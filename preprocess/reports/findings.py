"""What a report says of each finding: present, absent, uncertain or unchanged, with the words that say so.

A rule labeller over two vocabularies, ``cxr`` (the 14 observations of CheXpert) and ``ct`` (the 18
abnormalities of CT-RATE). A finding that is not named has no state, and none is inferred from another.
The rules are data (``findings_*.yaml``); what they look at is one sentence.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import cast

from medvl.preprocess.reports.findings_lexicon import (
    VOCABULARIES,
    Lexicon,
    Token,
    load_lexicon,
    marks_of,
    tokens_of,
)
from medvl.preprocess.reports.findings_places import Claim
from medvl.preprocess.reports.findings_scope import claims_of
from medvl.records import LabelState, Report, Sentence

__all__ = [
    "VOCABULARIES",
    "Mention",
    "describes_image",
    "findings_of",
    "forget",
    "mentions",
    "said",
    "sentence_states",
]

_CACHED = 600
"""Characters of the longest sentence that is remembered; reports repeat the short ones."""
_STRENGTH: dict[LabelState, int] = {"absent": 0, "uncertain": 1, "unchanged": 2, "present": 2}
_ELSEWHERE = frozenset(
    {
        "indication",
        "history",
        "comparison",
        "technique",
        "examination",
        "recommendation",
        "communication",
        "identity",
    }
)
"""Sections that do not describe this image."""
_NOT_IMAGE = frozenset(
    {"history", "technique", "recommendation", "communication", "identity", "comparison", "empty"}
)
"""Tags of sentences that do not describe this image."""


_HEADING = re.compile(
    r"\W*(?:(?:clinical|brief|relevant|patient) )?(?:indications?|history|information|question|reason"
    r"|technique|comparison|recommendations?|procedure)"
    r"(?: for (?:the |this )?(?:exam|examination|study))? ?:",
    re.IGNORECASE,
)
"""Opens a sentence that does not describe this image, where nobody has parted the text into sections."""


@dataclass(frozen=True)
class Mention:
    """One place where a text gives a finding a state.

    Attributes:
        finding, state: what is said.
        start, end: the words that name the finding, and the place where it needs one.
        cue: the span of the words that decided the state; None where nothing but the name did.
    """

    finding: str
    state: LabelState
    start: int
    end: int
    cue: tuple[int, int] | None = None


def findings_of(vocabulary: str) -> tuple[str, ...]:
    """Return the names of a vocabulary in its order.

    Raises:
        ConfigError: there is no such vocabulary.

    Examples:
        >>> len(findings_of("cxr")), len(findings_of("ct"))
        (14, 18)
    """
    return load_lexicon(vocabulary).findings


def mentions(text: str, *, vocabulary: str) -> tuple[Mention, ...]:
    """Find every statement about a finding, in order, with its evidence as spans of ``text``.

    Args:
        text: a sentence, or several.
        vocabulary: ``"cxr"`` or ``"ct"``.

    Raises:
        ConfigError: there is no such vocabulary.

    Examples:
        >>> text = "No change in the right effusion."
        >>> [mention] = mentions(text, vocabulary="cxr")
        >>> mention.state, text[mention.start : mention.end], text[slice(*mention.cue)]
        ('unchanged', 'effusion', 'No change in')
    """
    lexicon = load_lexicon(vocabulary)
    tokens = tokens_of(text, lexicon)
    if _HEADING.match(text):
        tokens = _after_first_stop(tokens)
    marks = marks_of(tokens, lexicon)
    spans = [(tokens[mark.first][1], tokens[mark.last][2]) for mark in marks]
    claims = claims_of(tokens, marks, devices=lexicon.devices, normal=lexicon.normal)
    return tuple(_mention(claim, spans) for claim in claims)


def _after_first_stop(tokens: list[Token]) -> list[Token]:
    stop = next((place for place, token in enumerate(tokens) if token[0] == "."), len(tokens))
    return tokens[stop:]


def _mention(claim: Claim, spans: list[tuple[int, int]]) -> Mention:
    (start, end), (first, last) = spans[claim.at], spans[claim.place]
    cue = spans[claim.cue] if claim.cue >= 0 else None
    return Mention(claim.finding, cast(LabelState, claim.state), min(start, first), max(end, last), cue)


def sentence_states(text: str, *, vocabulary: str) -> dict[str, LabelState]:
    """Return the state of each finding that a sentence names, in the order of the vocabulary.

    Where a sentence names a finding twice, present or unchanged wins over uncertain, and uncertain over
    absent; present wins over unchanged, for one of two effusions that grew is a change. ``no_finding`` is
    listed for an explicit statement alone, such as "normal chest", and only where no finding is said to be
    there.

    Args:
        text: the sentence.
        vocabulary: ``"cxr"`` or ``"ct"``.

    Raises:
        ConfigError: there is no such vocabulary.

    Examples:
        >>> sentence_states("Cannot exclude pneumonia.", vocabulary="cxr")
        {'pneumonia': 'uncertain'}
        >>> sentence_states("No pericardial or pleural effusion.", vocabulary="ct")
        {'pericardial_effusion': 'absent', 'pleural_effusion': 'absent'}
    """
    return dict(_states(text, vocabulary) if len(text) <= _CACHED else _states.__wrapped__(text, vocabulary))


@functools.lru_cache(maxsize=1 << 15)
def _states(text: str, vocabulary: str) -> tuple[tuple[str, LabelState], ...]:
    lexicon = load_lexicon(vocabulary)
    states: dict[str, LabelState] = {}
    for mention in mentions(text, vocabulary=vocabulary):
        known = states.get(mention.finding)
        stronger = known is None or _STRENGTH[mention.state] > _STRENGTH[known]
        if stronger or (known == "unchanged" and mention.state == "present"):
            states[mention.finding] = mention.state
    if lexicon.normal in states and _any_finding(states, lexicon):
        del states[lexicon.normal]
    return tuple((finding, states[finding]) for finding in lexicon.findings if finding in states)


def forget() -> None:
    """Forget the sentences read so far, so that a measurement starts cold."""
    _states.cache_clear()


def _any_finding(states: dict[str, LabelState], lexicon: Lexicon) -> bool:
    """Say whether anything besides devices is said to be, or perhaps to be, there."""
    return any(
        state != "absent"
        for finding, state in states.items()
        if finding != lexicon.normal and finding not in lexicon.devices
    )


def describes_image(sentence: Sentence) -> bool:
    """Say whether a sentence describes this image, by its section and its tags.

    Examples:
        >>> describes_image(Sentence(0, 9, "findings")), describes_image(Sentence(0, 9, "indication"))
        (True, False)
    """
    return sentence.section not in _ELSEWHERE and _NOT_IMAGE.isdisjoint(sentence.tags)


def said(report: Report, *, vocabulary: str) -> dict[str, LabelState]:
    """Return what a report says of each finding that it names, in the order of the vocabulary.

    Sections and sentences that do not describe this image are left out: indication, history, technique,
    comparison, recommendation, communication. Of the others, present or unchanged wins over uncertain, and
    uncertain over absent: one effusion is enough, and an impression may confirm what the findings doubted.
    Between present and unchanged, the last word of the impression decides, or else the last word at all.

    ``no_finding`` of ``cxr`` is present where no other finding but devices is present, unchanged or
    uncertain, and where the report says so or says that at least one finding is absent.

    Args:
        report: sections and sentences as :func:`~medvl.preprocess.reports.parse_report` finds them.
        vocabulary: ``"cxr"`` or ``"ct"``.

    Raises:
        ConfigError: there is no such vocabulary.

    Examples:
        >>> from medvl.preprocess.reports import parse_report
        >>> text = "INDICATION: Pneumonia? FINDINGS: Stable cardiomegaly. No effusion. Possible atelectasis."
        >>> said(parse_report(text), vocabulary="cxr")
        {'cardiomegaly': 'unchanged', 'atelectasis': 'uncertain', 'pleural_effusion': 'absent'}
    """
    lexicon = load_lexicon(vocabulary)
    states: dict[str, tuple[tuple[int, bool], LabelState]] = {}
    for sentence in report.sentences:
        if not describes_image(sentence):
            continue
        concludes = sentence.section == "impression"
        for finding, state in sentence_states(
            report.text[sentence.start : sentence.end], vocabulary=vocabulary
        ).items():
            rank = (_STRENGTH[state], concludes)
            if finding not in states or rank >= states[finding][0]:
                states[finding] = (rank, state)
    plain = {finding: state for finding, (_, state) in states.items()}
    if lexicon.normal:
        known = plain.pop(lexicon.normal, None)
        if (known or "absent" in plain.values()) and not _any_finding(plain, lexicon):
            plain[lexicon.normal] = "present"
    return {finding: plain[finding] for finding in lexicon.findings if finding in plain}
