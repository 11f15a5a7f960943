"""The table of wordings as rules: phrases and sentences that stand for one another, with their grammar."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from medvl.errors import UsageError, nearest

__all__ = [
    "PARTS",
    "Part",
    "Wordings",
    "articles",
    "capital",
    "fill",
    "load_wordings",
    "plural",
    "split_end",
    "telegraphic",
    "with_article",
]

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
"""Rules for training, and rules that are kept for evaluation."""

_END = re.compile(r"[\s.;]*$")
_VERBS = (
    r"is|are|was|were|no|not|but|which|that|has|have|had|without|there|be|been|can|could|may|might|appears?"
    r"|remains?|seems?|seen|noted|observed|detected|identified|nor|however|although|obtained|evaluated"
)
_SLOT = rf"(?P<x>(?:(?!\b(?:{_VERBS})\b)[^.;:?!\[\]])+?)"
_JOINT = r"\b(?:of|in|at|on|within|along|over|to|from|for|with|near|adjacent|involving|throughout|about)\b"
_HEAD_ENDS = (
    rf"{_JOINT}|\b(?:included|entering|passing|reaching|measuring|extending|located|compatible|consistent"
    r"|suggestive|secondary|due)\b"
)
"""What ends the noun that a verb must agree with."""
_OPEN_END = re.compile(
    rf"(?:{_JOINT}|\b(?:and|or|the|a|an|grossly|mildly|upper|lower|limits?))$", re.IGNORECASE
)
_NOT_NAMED = re.compile(
    r"(?:the |an? |any )?(?:change|changes|comparison|prior|priors|previous|interval|longer|more|other"
    r"|additional|further|new|study|studies|exam|examination|evidence|signs?|otherwise)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"(?!is |are |was |were |has |have ).+ (?:is|are|has|lies|keep|was|were)\b", re.IGNORECASE
)
"""A phrase with subject and verb, which stands for a whole sentence alone."""
_MANY = re.compile(r"(?:multiple|several|numerous|many|few|both|two|three|four|scattered)\b", re.I)
_NO_ARTICLE = re.compile(
    r"(?:an?|the|some|any|multiple|several|numerous|many|few|both|bilateral|no|this|these|\d|two|three|four)\b",
    re.I,
)


@dataclass(frozen=True)
class Wordings:
    """The rules of one part.

    Attributes:
        phrases: phrase in small letters → what may stand for it.
        finder: finds them, the longest first.
        sentences: meaning (``absent``, ``present`` …), recognisers, forms that may be written.
    """

    phrases: dict[str, tuple[str, ...]]
    finder: re.Pattern[str]
    sentences: tuple[tuple[str, tuple[re.Pattern[str], ...], tuple[str, ...]], ...]

    def rephrase(self, text: str, *, draw: random.Random, chance: float = 0.7) -> str:
        """Return a sentence with some of its known phrases said otherwise."""

        def other(match: re.Match[str]) -> str:
            known = match[0].lower()
            whole = len(match[0]) == len(body)
            fitting = [
                phrase
                for phrase in self.phrases[known]
                if whole or not (_CLAUSE.match(phrase) or _CLAUSE.match(known))
            ]
            return _like(match[0], draw.choice(fitting)) if fitting and draw.random() < chance else match[0]

        body = split_end(text)[0]

        return articles(self.finder.sub(other, text))

    def recast(self, sentence: str, *, draw: random.Random) -> Iterator[str]:
        """Yield a sentence in the other forms of its group, in random order."""
        body, end = split_end(sentence)
        for meaning, _, forms in self.sentences:
            noun = self.noun(body, meaning=meaning)
            for form in draw.sample(forms, len(forms)) if noun else ():
                said = fill(form, noun)
                if said.lower() != body.lower():
                    yield said + (end or ".")

    def noun(self, body: str, *, meaning: str) -> str:
        """Return what a sentence of one meaning is about; "" for another sentence.

        Examples:
            >>> load_wordings("train").noun("There is no focal consolidation", meaning="absent")
            'focal consolidation'
        """
        for name, recognisers, _ in self.sentences:
            match = name == meaning and next(
                (m for known in recognisers if (m := known.fullmatch(body))), None
            )
            if not match or _OPEN_END.search(match["x"]) or _NOT_NAMED.match(match["x"]):
                continue
            if meaning != "present" or "," not in match["x"]:
                return str(match["x"]).strip()
        return ""


@functools.cache
def _table() -> dict[str, Any]:
    path = Path(__file__).with_name("wording_en.yaml")
    return dict(yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader))  # strings alone: "no" is a word


@functools.cache
def load_wordings(part: str) -> Wordings:
    """Read the rules of one part.

    Raises:
        UsageError: there is no such part.

    Examples:
        >>> rules = load_wordings("train")
        >>> next(rules.recast("There is no effusion.", draw=random.Random(3)))
        'No effusion.'
    """
    if part not in PARTS:
        raise UsageError(f"unknown part '{part}' of the wordings.", hint=nearest(part, PARTS))
    table = _table()
    phrases: dict[str, tuple[str, ...]] = {}
    for group in table["phrases"][part]:
        known, written = _parts(group)
        for phrase in known:
            others = [other for other in written if other != phrase]
            phrases[phrase] = tuple(dict.fromkeys((*phrases.get(phrase, ()), *others)))
    if part == "test":  # what training may write is not held out
        seen = load_wordings("train").phrases
        phrases = {
            phrase: tuple(other for other in others if other not in seen.get(phrase, ()))
            for phrase, others in phrases.items()
        }
    phrases = {phrase: others for phrase, others in phrases.items() if others}
    longest = sorted(map(re.escape, phrases), key=len, reverse=True)
    sentences = []
    for meaning, group in table["sentences"][part].items():
        known, written = _parts(group)
        known = tuple(sorted(known, key=len, reverse=True))  # "no evidence of {x}" before "no {x}"
        sentences.append((meaning, tuple(map(_recogniser, known)), written))
    return Wordings(
        phrases, re.compile(rf"(?<![\w-])(?:{'|'.join(longest)})(?![\w-])", re.IGNORECASE), tuple(sentences)
    )


def _parts(group: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return all phrases of a group, and those that may be written."""
    known: list[str] = []
    written: list[str] = []
    open_end = True
    for phrase in group:
        if phrase == "<":
            open_end = False
            continue
        bare = phrase.removesuffix(" <")
        known.append(bare)
        if open_end and bare == phrase:
            written.append(bare)
    return tuple(known), tuple(written)


def _recogniser(form: str) -> re.Pattern[str]:
    words = {"{is}": "(?:is|are)", "{was}": "(?:was|were)", "{appear}": "appears?", "{x}": _SLOT}
    pattern = re.escape(form).replace(r"\{", "{").replace(r"\}", "}").replace(r"\ ", " ")
    pattern = pattern.replace("{a} ", "(?:an? )?")
    if not pattern.startswith("the "):
        pattern = pattern.replace("{x}", "(?:the )?{x}") if pattern.startswith("{x}") else pattern
    for slot, expression in words.items():
        pattern = pattern.replace(slot, expression)
    return re.compile(pattern, re.IGNORECASE)


def fill(form: str, noun: str) -> str:
    """Return a form with its noun phrase, agreement, article and capital.

    Examples:
        >>> fill("{a} {x} {is} seen", "opacities"), fill("there {is} {a} {x}", "effusion")
        ('Opacities are seen', 'There is an effusion')
    """
    noun = _lower(noun.strip())
    if noun.startswith(("both ", "all ", "this ", "these ")):
        form = form.replace("the {x}", "{x}")
    many = plural(noun)
    said = form.replace("{is}", "are" if many else "is").replace("{was}", "were" if many else "was")
    said = said.replace("{appear}", "appear" if many else "appears")
    said = said.replace("{a} {x}", with_article(noun)).replace("{x}", noun)
    return capital(articles(said))


def _like(model: str, phrase: str) -> str:
    """Write a phrase in the case of what it stands for."""
    if model.isupper() and len(model) > 4:
        return phrase.upper()
    return capital(phrase) if model[:1].isupper() else phrase


def _lower(text: str) -> str:
    """Take the capital of a sentence's first word away, unless it is an abbreviation or a name."""
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text


def capital(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def split_end(sentence: str) -> tuple[str, str]:
    """Return a sentence without its full stop, and the full stop ("" where it has none)."""
    end = _END.search(sentence)
    cut = end.start() if end else len(sentence)
    return sentence[:cut], "." if "." in sentence[cut:] else ""


def plural(noun: str) -> bool:
    """Say whether a noun phrase takes "are".

    Examples:
        >>> plural("focal areas of consolidation"), plural("atelectasis"), plural("heart and mediastinum")
        (True, False, True)
    """
    last = re.split(r",\s*(?:or\s+|and\s+)?|\s+or\s+", noun)[-1]
    head = re.split(_HEAD_ENDS, last)[0].strip()
    word = head.rsplit(" ", 1)[-1].lower()
    several = " and " in f" {re.split(_HEAD_ENDS, noun)[0]} " and " or " not in noun
    ends = word.endswith(("ae", "foci", "sulci", "bronchi", "septa")) or (
        word.endswith("s") and not word.endswith(("ss", "us", "is", "series"))
    )
    return several or ends or bool(_MANY.match(noun))


def with_article(noun: str) -> str:
    """Return a noun phrase with "a" or "an" where it takes one.

    Examples:
        >>> with_article("small effusion"), with_article("edema"), with_article("opacities")
        ('a small effusion', 'edema', 'opacities')
    """
    first = re.split(r",|\s+or\s+|\s+and\s+", noun)[0]
    head = re.split(_HEAD_ENDS, first)[0].strip().rsplit(" ", 1)[-1].lower()
    if _NO_ARTICLE.match(noun) or plural(first) or head in _table()["mass"] or not head.isalpha():
        return noun
    return articles(f"a {noun}")


_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w[\w-]*))")


def articles(text: str) -> str:
    """Return a text in which "a" and "an" fit the next word.

    Examples:
        >>> articles("a enlarged heart"), articles("An small effusion"), articles("a RUL mass")
        ('an enlarged heart', 'A small effusion', 'an RUL mass')
    """
    return _ARTICLE.sub(lambda match: f"{match[1]}{'n' if _vowel(match[2]) else ''} ", text)


def _vowel(word: str) -> bool:
    """Say whether a word is spoken with a vowel first; abbreviations by their letters."""
    if word.isupper() and len(word) > 1:
        return word[0] in "AEFHILMNORSX"
    return bool(re.match(r"[aeio]|un(?!i)|u[lps](?!e|u)", word, re.IGNORECASE))


@functools.cache
def _telegraphic() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(find, re.IGNORECASE), put) for find, put in _table()["telegraphic"])


def telegraphic(sentence: str) -> str:
    """Return a sentence in telegraphic style.

    Examples:
        >>> telegraphic("There is a small effusion."), telegraphic("The heart is normal in size.")
        ('Small effusion.', 'Heart normal in size.')
    """
    body, end = split_end(sentence)
    for find, put in _telegraphic():
        body = find.sub((lambda m: m[0].rsplit(" ", 1)[0]) if put == "@" else put, body)
    body = re.sub(r"^no (?=[A-Z][a-z])(.)", lambda match: f"no {match[1].lower()}", body)
    return capital(body.strip()) + end
