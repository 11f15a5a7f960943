"""Abbreviations of radiology and pathology: written out, left alone where ambiguous, or put in."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Abbreviations", "contract", "expansions", "load_abbreviations"]


@dataclass(frozen=True)
class Abbreviations:
    """The table of one language.

    Attributes:
        exact: abbreviation as it is written → its meaning.
        any_case: abbreviation in small letters, matched in any case → its meaning.
        ambiguous: abbreviation → its readings; never written out.
        long: finds them in a text; ``short`` finds their meanings.
    """

    exact: Mapping[str, str]
    any_case: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    long: re.Pattern[str]
    short: re.Pattern[str]
    contractions: Mapping[str, str]


@functools.cache
def load_abbreviations(language: str) -> Abbreviations:
    """Read the table of a language; one that has none gives an empty table.

    Examples:
        >>> load_abbreviations("en").exact["GGO"]
        'ground-glass opacity'
        >>> load_abbreviations("en").ambiguous["LAD"][0]
        'left anterior descending artery'
    """
    import yaml  # here, so that whoever never asks for a table does not wait for it

    path = Path(__file__).parent / f"abbreviations_{language}.yaml"
    text = path.read_text("utf-8") if language.isalpha() and path.is_file() else "{}"
    data = yaml.load(text, Loader=yaml.BaseLoader)  # strings alone
    exact, any_case = data.get("exact", {}), data.get("any_case", {})
    contractions: dict[str, str] = {}
    for key, meaning in (exact | any_case).items():
        contractions.setdefault(meaning.lower(), key)
    known = rf"(?P<exact>{_any(exact)})|(?P<any>(?i:{_any(any_case)}))"
    return Abbreviations(
        exact,
        any_case,
        {key: tuple(readings) for key, readings in data.get("ambiguous", {}).items()},
        re.compile(rf"(?<![\w/&.-])(?:(?P<article>[Aa]n?)(?P<gap>\s+))?(?:{known})(?![\w/&-])(?!\.\w)"),
        re.compile(rf"(?<![\w/-])(?i:{_any(contractions)})(?![\w/-])"),
        contractions,
    )


def _any(words: Mapping[str, str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True)) or "(?!)"


def expansions(text: str, *, language: str) -> list[tuple[int, int, str]]:
    """Return start, end and meaning of each whole-word abbreviation that has one reading only.

    A meaning takes a capital at the start of the text, and capitals in a text without small letters. Where
    it asks for the other article, the article is changed too.

    Examples:
        >>> expansions("No PTX. PE is possible.", language="en")
        [(3, 6, 'pneumothorax')]
        >>> expansions("An RLL opacity", language="en")
        [(0, 2, 'A'), (3, 6, 'right lower lobe')]
    """
    table = load_abbreviations(language)
    shouted = text.isupper() and len(text.split()) > 2
    found: list[tuple[int, int, str]] = []
    for match in table.long.finditer(text):
        kind = "exact" if match["exact"] else "any"
        start, end = match.span(kind)
        meaning = table.exact[match[0][start - match.start() :]] if kind == "exact" else ""
        meaning = meaning or table.any_case[match[kind].lower()]
        if match["article"] and language == "en":
            vowel = meaning[0].lower() in "aeio"
            if vowel != (len(match["article"]) == 2):
                article = match["article"][0] + ("n" if vowel else "")
                found.append((*match.span("article"), article))
        if shouted:
            meaning = meaning.upper()
        elif not text[:start].strip():
            meaning = meaning[0].upper() + meaning[1:]
        found.append((start, end, meaning))
    return found


def contract(text: str, *, language: str = "en") -> str:
    """Put abbreviations in for their meanings: the other way round, for augmentation.

    Examples:
        >>> contract("Opacity in the right lower lobe, no pneumothorax.")
        'Opacity in the RLL, no PTX.'
    """
    table = load_abbreviations(language)
    return table.short.sub(lambda match: table.contractions[match[0].lower()], text)
