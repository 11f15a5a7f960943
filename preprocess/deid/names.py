"""The given names of people found in a text, in any rendering, without eating the words they look like."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medvl.preprocess.deid.dates import Span
from medvl.preprocess.deid.folding import fold
from medvl.preprocess.deid.words import ABBREVIATIONS, COMMON, EPONYMS, NAMED_THINGS

__all__ = ["find_names", "name_parts"]

_TITLE_BEFORE = re.compile(
    r"(?:\b(?:mr|mrs|ms|miss|dr|drs|prof|professor|doctor|sir|madam|nurse|baby)\b\.?|"
    r"\bpatient(?:'s)?(?: name)?\s*:|\bname\s*(?:is|:)|\bby:?)\s+$",
    re.IGNORECASE,
)
_INITIAL_BEFORE = re.compile(r"(?<!\w)([A-Za-z])(?:\.|[ ]|\.[ ])(?:[A-Z]\.?[ ]?)?$")
_INITIAL_AFTER = re.compile(r"(?:,?[ ]|,)([A-Z])\b(?:\.(?=\W|$))?(?:[ ][A-Z]\b(?:\.(?=\W|$))?)?")
_GAP = re.compile(r"(?:\s{0,2}[,^_-]\s{0,2}|\s{1,3})(?:[A-Za-z]\.?[\s,^_]){0,2}")
_DOTTED = re.compile(r"[A-Z]\. ?[A-Z]\.(?: ?[A-Z]\.)?(?!\w)")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_THING = re.compile(
    r"(?:[-/][^\W_]+)?(?:['’]?s)?(?:[ \n-](?:[A-Z]|I{1,3}|[IV]V|[a-z-]+))?[ \n-]([a-z]+)", re.IGNORECASE
)
_GRADE = re.compile(r" (?:[A-F]|I{1,3}|[IV]V|VI{0,3})\b(?!\.)")
_PERSONAL = re.compile(
    r" (?:called|came|returned|reports|complains|states|denies|feels|underwent|agreed|consented|says)\b"
)
_DOTTED_WORDS = frozenset(
    "ap pa ct mr us iv im po or er ed md do rn tb ll lr ur ul ra la lv rv eg ie am pm".split()
)
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")


class _Hit(NamedTuple):
    """A part of a name where it stands, and the part as it is known."""

    start: int
    end: int
    part: str


class _Known(NamedTuple):
    """The names in the forms that texts give them, folded.

    Attributes:
        parts: word to (person, role); the role ``whole`` says who it is without any other word.
        first, last: initials of given and of family names.
        initials: those of whole names, ``jd``, ``jqd``.
    """

    parts: dict[str, frozenset[tuple[int, str]]]
    first: frozenset[str]
    last: frozenset[str]
    initials: frozenset[str]


def name_parts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return family and given names of a person name, DICOM or plain, in lower case.

    Examples:
        >>> name_parts("Garcia-Lopez^Maria^^Dr")
        (('garcia', 'lopez'), ('maria',))
        >>> name_parts("John Q. Smith"), name_parts("Smith, John")
        ((('smith',), ('john', 'q')), (('smith',), ('john',)))
    """
    family: list[str] = []
    given: list[str] = []
    for group in name.split("="):  # PS3.5 6.2.1: alphabetic, ideographic, phonetic
        if "^" in group:
            components = [*group.split("^"), "", ""]
            pieces = components[0], f"{components[1]} {components[2]}"
        elif "," in group:
            last, _, first = group.partition(",")
            pieces = last, first
        else:
            first, _, last = group.strip().rpartition(" ")
            pieces = last, first
        family += _WORD.findall(pieces[0].lower().replace("i̇", "i"))  # what lower() makes of İ
        given += _WORD.findall(pieces[1].lower().replace("i̇", "i"))
    return tuple(dict.fromkeys(family)), tuple(part for part in dict.fromkeys(given) if part not in family)


@functools.lru_cache(maxsize=4096)
def _known(names: tuple[str, ...]) -> _Known:
    parts: dict[str, set[tuple[int, str]]] = {}
    first: set[str] = set()
    last: set[str] = set()
    initials: set[str] = set()
    groups = [(person, group) for person, name in enumerate(names) for group in name.split("=")]
    for person, group in groups:
        family, given = name_parts(group)
        first |= {fold(part)[0][:1] for part in given}
        last |= {fold(part)[0][:1] for part in family}
        roles = [(part, "family") for part in family] + [(part, "given") for part in given]
        if family and given:
            letters = [part[0] for part in given[:2]] + [family[-1][0]]
            initials |= {"".join(letters), letters[0] + letters[-1], letters[-1] + letters[0]}
            roles += [(form, "whole") for form in _glued("".join(family), given)]
        if len(family) > 1:
            roles.append(("".join(family), "family"))
        for part, role in roles:
            for form in _forms(part):
                if len(form) > 1:
                    parts.setdefault(form, set()).add((person, role))
    return _Known(
        {part: frozenset(who) for part, who in parts.items()},
        frozenset(first),
        frozenset(last),
        frozenset(initials),
    )


def _glued(family: str, given: Sequence[str]) -> Iterator[str]:
    """Yield a whole name written as one word, where that is none of the language."""
    for form in (given[0] + family, family + given[0], f"{family} {given[0]}"):
        if _CJK.search(form) or (len(form) > 5 and form not in COMMON and " " not in form):
            yield form
    if len(family) > 2:
        yield f"{given[0][0]}{family}"  # JDoe: counts only with these capitals


def _forms(part: str) -> Iterator[str]:
    """Yield a part of a name and how it is written without accents, apostrophes or gaps, all folded."""
    plain = fold(part)[0]
    yield plain
    spelt = part.translate(_SPELT)
    if spelt != part:
        yield fold(spelt)[0]
    elif len(plain) > 4 and (short := re.sub("([aou])e", r"\1", plain)) != plain:
        yield short  # Mueller is Müller, which folds to Muller
    if "'" in plain:
        yield plain.replace("'", "")
        yield plain.replace("'", " ")
    if plain.startswith("mc") and len(plain) > 4:
        yield f"mc {plain[2:]}"
        yield f"mac{plain[2:]}"


_SPELT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})


def find_names(text: str, low: str, names: Sequence[str]) -> Iterator[Span]:
    """Yield where the people of ``names`` are named.

    Args:
        text: the report.
        low: the report in lower case.
        names: DICOM person names (``DOE^JOHN``) or plain ones.
    """
    if not names:
        return
    known = _known(tuple(names))
    for match in _DOTTED.finditer(text) if known.initials and "." in text else ():
        letters = "".join(filter(str.isalpha, match[0])).lower()
        before = text[max(0, match.start() - 1) : match.start()]
        if (
            letters in known.initials
            and letters not in _DOTTED_WORDS
            and not before.isalnum()
            and before != "."
        ):
            yield Span(*match.span(), "name", "[name]")
    folded, places = (low, None) if text.isascii() else fold(text)
    if places is None:
        yield from _in_plain(text, folded, known)
        return
    # The words are sought in the folded text and shown in the one that was given.
    cased = "".join(
        letter.upper() if text[at].isupper() else letter for letter, at in zip(folded, places, strict=False)
    )
    for span in _in_plain(cased, folded, known):
        end = places[span.end - 1] + 1
        while end < len(text) and (end not in places):  # a combining accent belongs to its letter
            end += 1
        yield Span(places[span.start], end, span.kind, span.shown)


def _in_plain(text: str, low: str, known: _Known) -> Iterator[Span]:
    hits = _hits(text, low, known)
    if not hits:
        return
    sample = text[:600]
    capitals = sum(map(str.isupper, sample)) > sum(map(str.islower, sample))
    i = 0
    while i < len(hits):
        group = [hits[i]]
        while (
            i + 1 < len(hits)
            and hits[i + 1].start - group[-1].end <= 8
            and _GAP.fullmatch(text, group[-1].end, hits[i + 1].start)
        ):
            i += 1
            group.append(hits[i])
        i += 1
        yield from _group(text, group, known, capitals=capitals)


def _hits(text: str, low: str, known: _Known) -> list[_Hit]:
    """Return where parts stand as words, the longest at each place; Chinese and Korean ones in any place."""
    found: dict[int, _Hit] = {}
    for part, who in known.parts.items():
        at = low.find(part)
        while at >= 0:
            end = at + len(part)
            inside = bool(_CJK.match(part))
            apart = not (low[at - 1 : at].isalnum() or low[end : end + 1].isalnum())
            if (
                (apart or inside)
                and _as_glued(text[at:end], who)
                and end > found.get(at, _Hit(at, at, "")).end
            ):
                found[at] = _Hit(at, end, part)
            at = low.find(part, at + 1)
    hits: list[_Hit] = []
    for at in sorted(found):
        if not hits or at >= hits[-1].end:
            hits.append(found[at])
    return hits


def _as_glued(word: str, who: frozenset[tuple[int, str]]) -> bool:
    """Whether a whole name in one word has the letters or the capitals of one; other parts always have."""
    if any(role != "whole" for _, role in who) or len(word) > 7 or _CJK.search(word):
        return True
    return (word[:2].isupper() and word[2:].islower()) or word.isupper() or len(word) > 5


def _group(text: str, group: list[_Hit], known: _Known, *, capitals: bool) -> Iterator[Span]:
    """Yield a run of name parts as one name, or each of its words on its own merits."""
    words = {hit.part for hit in group}
    people = [{person for person, _ in known.parts[word]} for word in words]
    together = len(words) > 1 and bool(set.intersection(*people))
    plain = all(word in COMMON or len(word) < 3 for word in words)
    if together and (not plain or all(text[hit.start].isupper() for hit in group)):
        start, end = group[0].start, _past_initials(text, group[-1].end, known.first)
        if not (group[-1].part in EPONYMS and plain and _called_after(text, group[-1])):
            yield Span(start, end, "name", "[name]")
        return
    for hit in group:
        roles = {role for _, role in known.parts[hit.part]}
        initial = _INITIAL_BEFORE.search(text, max(0, hit.start - 6), hit.start)
        after = _INITIAL_AFTER.match(text, hit.end)
        thing = hit.part in EPONYMS and _called_after(text, hit)
        if initial and "family" in roles and initial[1].lower() in known.first and initial[1].isupper():
            yield Span(initial.start(), hit.end, "name", "[name]")
        elif (
            after
            and not thing
            and after[1].lower() in (known.first if "family" in roles else known.last)
            and text[hit.start].isupper()
        ):
            yield Span(hit.start, after.end(), "name", "[name]")
        elif _tells(text, hit, thing=thing, whole="whole" in roles, capitals=capitals):
            yield Span(hit.start, hit.end, "name", "[name]")


def _called_after(text: str, hit: _Hit) -> bool:
    """Whether something called after the name follows it: Baker cyst, Hill-Sachs lesion, Kerley B."""
    thing = _THING.match(text, hit.end)
    if thing and any(word in NAMED_THINGS for word in re.findall("[a-z]+", thing[0].lower())):
        return True
    return bool(_GRADE.match(text, hit.end))


def _past_initials(text: str, end: int, first: frozenset[str]) -> int:
    after = _INITIAL_AFTER.match(text, end)
    return after.end() if after and after[1].lower() in first else end


def _tells(text: str, hit: _Hit, *, thing: bool, whole: bool, capitals: bool) -> bool:
    """Whether a single word is the name and not the word that it looks like."""
    start, end, part = hit
    word = text[start:end]
    if _TITLE_BEFORE.search(text, max(0, start - 20), start):
        return True
    if thing:
        return False
    if whole or (len(part) > 1 and _CJK.match(part)):
        return len(part) > 1
    if part not in COMMON and (len(part) > 3 or part not in ABBREVIATIONS):
        return len(part) > 2 or (word[0].isupper() and word[1:].islower())
    if word[0].isupper() and word[1:].islower() and _PERSONAL.match(text, end):
        return True
    # "seen by Rose today": a capital inside a sentence, between words that have none
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    inside = len(before) == 2 and before[1] == " " and (before[0].islower() or before[0] == ",")
    follows = not after or (not after[0].isalnum() and after[0] not in "-/" and not after[1:].isupper())
    return not capitals and word[0].isupper() and word[1:].islower() and inside and follows
