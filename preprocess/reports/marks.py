"""Spans inside a sentence that a view may leave out or show otherwise, and the sentence's tags without them.

A removal takes no number, comparator, negation or side with it: where it would, nothing is marked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from medvl.preprocess.reports.rules import Rules, find_tags, load_rules
from medvl.records import Change
from medvl.specs import PLACEHOLDER, RAW_PLACEHOLDER, fold

__all__ = ["read_sentence"]

LONGEST = 2_000
"""No phrase is looked for in a longer stretch: it is no sentence, and each removal reads all of it."""


@functools.lru_cache(maxsize=1 << 14)  # reports repeat their sentences: two in three of real ones
def read_sentence(sentence: str, section: str, parser: str) -> tuple[tuple[str, ...], tuple[Change, ...]]:
    """Return the tags of a sentence and its marks, whose spans index the sentence.

    A clause that says nothing but a placeholder ("compared to ___") is marked, and the tags are those of the
    rest; a sentence that is nothing but such a clause is tagged ``empty``. Every other placeholder is marked
    with its type, or with "" where nothing tells it. A sentence tagged ``prior-mixed`` gets marks for the
    phrases that only compare.

    Examples:
        >>> tags, marks = read_sentence("No effusion compared to ___.", "findings", "en-1")
        >>> tags, [(mark.start, mark.end, mark.reason) for mark in marks]
        ((), [(11, 27, 'placeholder clause')])
    """
    if not _may_hold(sentence):
        tags = find_tags(sentence, section, parser)
        if "prior-mixed" not in tags:
            return tags, ()
    rules = load_rules(parser)
    rest = _Rest.of(sentence)
    if _may_hold(rest.text):
        if len(rest.text) <= LONGEST:
            _drop_clauses(rest, rules)
        if not any(char.isalnum() for char in PLACEHOLDER.sub("", rest.text)):
            return tuple(sorted({*find_tags(sentence, section, parser), "empty"})), ()
        for match in RAW_PLACEHOLDER.finditer(rest.text):
            kind = _type(rest.text, match, rules)
            rest.mark(match.start(), match.end(), "placeholder", f"[{kind}]" if kind else "")
    tags = find_tags(rest.text, section, parser)
    if "prior-mixed" in tags and len(rest.text) <= LONGEST:
        _drop_priors(rest, rules)
    return tags, tuple(sorted(rest.marks, key=lambda mark: (mark.start, -mark.end)))


def _may_hold(text: str) -> bool:
    return "__" in text or "XXX" in text or "xxx" in text or "[" in text or not text.isprintable()


@dataclass
class _Rest:
    """What is left of a sentence, where each of its characters stood, and the marks made so far."""

    text: str
    places: list[int]
    marks: list[Change] = field(default_factory=list)

    @staticmethod
    def of(sentence: str) -> _Rest:
        """Fold white space and drop what is invisible, as rendering does."""
        if sentence.isascii() and sentence.isprintable() and "  " not in sentence:
            return _Rest(sentence, list(range(len(sentence))))
        text: list[str] = []
        places: list[int] = []
        for place, char in enumerate(sentence):
            if char.isspace():
                if text and text[-1] != " ":
                    text.append(" ")
                    places.append(place)
            elif char.isascii() or fold(char):
                text.append(char)
                places.append(place)
        return _Rest("".join(text), places)

    def mark(self, start: int, end: int, reason: str, shown: str) -> None:
        """Add a mark for ``text[start:end]``."""
        self.marks.append(Change(self.places[start], self.places[end - 1] + 1, reason, shown))

    def cut(self, start: int, end: int, reason: str, protected: re.Pattern[str], shown: str = "") -> bool:
        """Mark and take out a span, unless the words that no removal may touch would change."""
        left = self.text[:start] + shown + self.text[end:]
        if _guarded(left, protected) != _guarded(self.text, protected) or not _stands(left):
            return False
        self.mark(start, end, reason, shown)
        self.text = left
        self.places[start:end] = [self.places[start]] * len(shown)
        return True


def _guarded(text: str, protected: re.Pattern[str]) -> list[str]:
    """Return the numbers, comparators, negations and sides of a text; those inside placeholders are none."""
    return protected.findall(PLACEHOLDER.sub("\0", text))


def _stands(text: str) -> bool:
    """Say whether something is left, and it does not open with a mark."""
    return not text.strip() or text.lstrip()[0] not in ",;:)" or not any(map(str.isalnum, text))


_BOUNDARY = re.compile(r" ?(?:[.,;:)]|$)")


def _reach(text: str, start: int, end: int) -> tuple[int, int]:
    """Take the blanks, commas and brackets that a phrase leaves behind into its span."""
    if text[:start].endswith("(") and text[end:].startswith(")"):
        start, end = start - 1, end + 1
    if not text[:start].strip():  # it opens the sentence: what follows does so now
        while end < len(text) and text[end] in " ,;:":
            end += 1
        return 0, end
    while start and text[start - 1] == " ":
        start -= 1
    if _BOUNDARY.match(text, end) and text[start - 1] in ",;":
        start -= 1
    return start, end


def _each(rest: _Rest, pattern: re.Pattern[str], take: Callable[[re.Match[str]], bool]) -> None:
    """Offer each match to ``take``; after a removal the search starts again there."""
    place = 0
    while match := pattern.search(rest.text, place):
        place = max(0, match.start() - 1) if take(match) else match.end()


def _drop_clauses(rest: _Rest, rules: Rules) -> None:
    def take(match: re.Match[str]) -> bool:
        start, end = _reach(rest.text, *match.span())
        return rest.cut(start, end, "placeholder clause", rules.protected)

    def opens(match: re.Match[str]) -> bool:
        before = rest.text[: match.start()].rstrip()
        closed = _BOUNDARY.match(rest.text, match.end()) is not None
        return closed and (not before or before[-1] in ",;(") and take(match)

    _each(rest, rules.opening, opens)
    _each(rest, rules.clauses, take)


def _type(text: str, match: re.Match[str], rules: Rules) -> str:
    if match[0].startswith("[**"):
        for kind, words in rules.inside:
            if words.search(match[0][3:-3]):
                return kind
    before = text[max(0, match.start() - 40) : match.start()]
    after = text[match.end() : match.end() + 24]
    for kind, pattern, following in rules.types:
        if (pattern is None or pattern.search(before)) and (following is None or following.search(after)):
            return kind
    return ""


def _drop_priors(rest: _Rest, rules: Rules) -> None:
    priors, protected = rules.priors, rules.protected

    def adverbial(match: re.Match[str]) -> bool:
        if _word_after(rest.text, match.end()) in priors.belongs:
            return False
        start, end = _reach(rest.text, *match.span())
        return rest.cut(start, end, "prior phrase", protected)

    def state(match: re.Match[str]) -> bool:
        return _word_before(rest.text, match.start()) not in priors.needs and adverbial(match)

    def adjective(match: re.Match[str]) -> bool:
        text, start, end = rest.text, match.start(), match.end()
        if not priors.negations.isdisjoint(_words(text[:start])) or not _describes(text, start, end, rules):
            return False
        if priors.order == "after":
            return rest.cut(start - 1, end, "prior phrase", protected)
        article = _word_before(text, start)
        other = _article(article, text[end + 1 :], priors.articles)
        if other and other != article:
            start -= len(article) + 1
            shown = other if text[start].islower() else other.capitalize()
            return rest.cut(start, end, "prior phrase", protected, shown)
        return rest.cut(start, end + 1, "prior phrase", protected)

    _each(rest, priors.states, state)
    _each(rest, priors.adverbials, adverbial)
    _each(rest, priors.adjectives, adjective)


def _describes(text: str, start: int, end: int, rules: Rules) -> bool:
    """Say whether an adjective at ``text[start:end]`` stands with a finding, and alone with it."""
    priors = rules.priors

    def noun(word: str) -> bool:
        return word in priors.nouns or rules.stems.search(word) is not None

    if priors.order == "after":
        near = _words(text[:start])[-4:]
        last = near[-1] if near else ""
        closed = _BOUNDARY.match(text, end) is not None
        return any(map(noun, near)) and last not in priors.breaks and text[start - 1] == " " and closed
    before = text[:start].rstrip()
    if before and (_word_before(text, start) not in priors.after or not before[-1].isalpha()):
        return False
    stretch = re.match(r" (?:[^.,;:()]|(?<=\d)[.,](?=\d))*", text[end:])
    for number, word in enumerate(_words(stretch[0]) if stretch else ()):
        if noun(word):
            return True
        if word in priors.breaks or number == 4:
            return False
    return False


_WORD = re.compile(r"[^\W\d_][\w'-]*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _word_before(text: str, place: int) -> str:
    match = re.search(r"([^\W\d_][\w'-]*) ?$", text[max(0, place - 24) : place])
    return match[1].lower() if match else ""


def _word_after(text: str, place: int) -> str:
    match = re.match(r" ?([^\W\d_][\w'-]*)", text[place : place + 24])
    return match[1].lower() if match else ""


def _article(article: str, following: str, articles: dict[str, str]) -> str:
    """Return the article that the next word asks for, if ``article`` is one of a pair ("a", "an")."""
    for plain, vowel in articles.items():
        if article in (plain, vowel):
            sound = following[:1].lower() in "aeio" or re.match(r"u(?!ni|s[aeiu]|ti)", following.lower())
            return vowel if sound else plain
    return ""
