"""The rules of the report parser, read from data, and the tags that they give a sentence."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medvl.errors import ConfigError, nearest
from medvl.specs import PLACEHOLDER

__all__ = ["PARSERS", "PriorPhrases", "Rules", "find_tags", "load_rules", "parser_data"]

_FOLDER = Path(__file__).parent
PARSERS = tuple(sorted(path.stem.removeprefix("rules_") for path in _FOLDER.glob("rules_*.yaml")))
"""Versions of the rules, one file each; a store, a checkpoint and a bundle name theirs."""


@dataclass(frozen=True)
class TagRule:
    """A tag holds where a word or a phrase occurs, or where all words are ``only`` and one is ``core``."""

    words: frozenset[str]
    phrases: re.Pattern[str] | None
    gate: tuple[str, ...]
    core: frozenset[str]
    only: frozenset[str]


@dataclass(frozen=True)
class PriorPhrases:
    """What the generation view may leave out of a sentence; see the rules file for each list."""

    adverbials: re.Pattern[str]
    states: re.Pattern[str]
    adjectives: re.Pattern[str]
    needs: frozenset[str]
    belongs: frozenset[str]
    after: frozenset[str]
    nouns: frozenset[str]
    breaks: frozenset[str]
    negations: frozenset[str]
    articles: dict[str, str]
    order: str


@dataclass(frozen=True)
class Rules:
    """The rules of one parser version.

    Attributes:
        headings: heading in lower case to section name; ``strict`` ones are common words too.
        main: headings that are found with small misspellings, to their section.
        lines: finds headings that no colon ends.
        section_tags: section name to the tag of all its sentences.
        abbreviations: words before a full stop that ends no sentence; ``titles`` never do, ``numbered`` ones
            before a number do not; ``ordinals``: words before which a number and a stop are an ordinal.
        starters: where there are any, an abbreviation ends its sentence only before one of these words.
        finding: words for what a picture can show; ``stems``: parts of such words; ``picture``: words for the
            picture itself;
            ``comparison``: all words that the mere name of an earlier study may have.
        condition: words that open an advice with its condition.
        tags: tag to its rule.
        protected: words and figures whose number no removal may change; ``counted``: the same by kind.
        clauses, opening: clauses that say nothing but a placeholder; the second only after a comma.
        types: type of a placeholder, what stands before it, what after.
        inside: type of a placeholder, the words inside its brackets.
        priors: phrases that compare with an earlier study.
    """

    headings: dict[str, str]
    strict: frozenset[str]
    main: dict[str, str]
    lines: re.Pattern[str]
    section_tags: dict[str, str]
    abbreviations: frozenset[str]
    titles: frozenset[str]
    numbered: frozenset[str]
    ordinals: frozenset[str]
    starters: frozenset[str]
    stems: re.Pattern[str]
    finding: frozenset[str]
    picture: frozenset[str]
    comparison: frozenset[str]
    condition: tuple[str, ...]
    tags: dict[str, TagRule]
    protected: re.Pattern[str]
    counted: dict[str, re.Pattern[str]]
    clauses: re.Pattern[str]
    opening: re.Pattern[str]
    types: tuple[tuple[str, re.Pattern[str] | None, re.Pattern[str] | None], ...]
    inside: tuple[tuple[str, re.Pattern[str]], ...]
    priors: PriorPhrases


@functools.cache
def parser_data(parser: str) -> dict[str, Any]:
    """Return the rules file of a parser version as it is written.

    Raises:
        ConfigError: there is no such version.
    """
    if parser not in PARSERS:
        raise ConfigError(f"unknown report parser '{parser}'.", hint=nearest(parser, PARSERS))
    text = (_FOLDER / f"rules_{parser}.yaml").read_text("utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader)  # strings alone: "no" is a word


@functools.cache
def load_rules(parser: str) -> Rules:
    """Read the rules of a parser version.

    Raises:
        ConfigError: there is no such version.
    """
    data = parser_data(parser)
    headings = {heading: name for name, many in data["sections"].items() for heading in many}
    names = "|".join(sorted(map(re.escape, headings), key=len, reverse=True))
    body = r"\s+(?:-\s|[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]|[A-Z]\s|\d{1,2}[.)]\s)"
    parts = {"P": f"(?:{PLACEHOLDER.pattern})"}
    for name, part in data["parts"].items():
        parts[name] = _fill(part, parts)
    prior = data["prior_phrases"]
    counted = {kind: rf"{_SIGNS.get(kind, '')}\b(?:{words})\b" for kind, words in data["protected"].items()}
    return Rules(
        headings=headings,
        strict=frozenset(data["strict"]),
        main=data["main"],
        # A heading without a colon: alone on its line, or in capitals at the start of a line or a sentence.
        lines=re.compile(
            rf"^[ \t#*]*(?P<alone>(?i:{names}))[ \t*]*$"
            rf"|(?:^|(?<=[.\n]))[ \t]*(?P<capitals>{names.upper()})(?={body})",
            re.MULTILINE,
        ),
        section_tags=data["section_tags"],
        stems=re.compile(data.get("stems") or "(?!)"),
        condition=tuple(f"{word} " for word in data["condition"]),
        tags={tag: _tag_rule(rule) for tag, rule in data["tags"].items()},
        protected=re.compile("|".join(counted.values()), re.IGNORECASE),
        counted={kind: re.compile(words, re.IGNORECASE) for kind, words in counted.items()},
        clauses=_whole(data["clauses"].get("anywhere", ()), parts),
        opening=_whole(data["clauses"].get("start", ()), parts),
        types=tuple((kind, _search(before), _search(after)) for kind, before, after in data["placeholders"]),
        inside=tuple((kind, re.compile(words, re.IGNORECASE)) for kind, words in data["placeholder_words"]),
        priors=PriorPhrases(
            adverbials=_whole(prior.get("adverbials", ()), parts),
            states=_whole(prior.get("states", ()), parts),
            adjectives=_whole([prior["adjectives"]], parts),
            **{
                name: frozenset(prior[name])
                for name in ("needs", "belongs", "after", "nouns", "breaks", "negations")
            },
            articles=prior.get("articles", {}),
            order=prior.get("order", "before"),
        ),
        **{name: frozenset(data.get(name, ())) for name in _WORD_LISTS},
    )


_SIGNS = {"number": r"\d+(?:[.,]\d+)*(?:\s?(?:mm|cm|ml|cc|hu|he|uh)\b|\s?%)?|", "comparator": "[<>≤≥=±~]|"}
_WORD_LISTS = (
    "abbreviations",
    "titles",
    "numbered",
    "ordinals",
    "starters",
    "finding",
    "picture",
    "comparison",
)


def _fill(pattern: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{(\w*[A-Za-z]\w*)\}", lambda match: parts[match[1]], pattern)


def _whole(patterns: list[str] | tuple[str, ...], parts: dict[str, str]) -> re.Pattern[str]:
    many = "|".join(f"(?:{_fill(pattern, parts)})" for pattern in patterns) or "(?!)"
    return re.compile(rf"(?<![\w-])(?:{many})(?![\w-])", re.IGNORECASE)


def _search(pattern: str) -> re.Pattern[str] | None:
    return re.compile(pattern, re.IGNORECASE) if pattern else None


def _tag_rule(rule: dict[str, list[str]]) -> TagRule:
    phrases = "|".join(f"(?:{phrase})" for phrase in rule.get("phrases", ()))
    words, core, only = (frozenset(rule.get(key, ())) for key in ("words", "core", "only"))
    return TagRule(
        words, re.compile(phrases) if phrases else None, tuple(rule.get("gate", ())), core, only | core
    )


_WORD = re.compile(r"[a-zß-öø-ÿœ][a-z0-9ß-öø-ÿœ-]*")


def find_tags(sentence: str, section: str, parser: str) -> tuple[str, ...]:
    """Name what a sentence is besides a description of the picture."""
    rules = load_rules(parser)
    lower = " ".join(sentence.lower().split())
    held = "_" in sentence or "xxx" in lower or "[" in sentence
    bare = " ".join(PLACEHOLDER.sub("", sentence).lower().split()) if held else lower
    tags = {"placeholder"} if held and len(bare) != len(lower) else set()
    if not any(char.isalnum() for char in bare):
        return tuple(sorted(tags | {"empty"}))
    words = set(_WORD.findall(bare))
    shows = _names_finding(bare, words, rules)
    for tag, rule in rules.tags.items():
        where = _first(lower, words, rule)
        if where >= 0 and not (tag == "technique" and shows):
            tags.add(f"{tag}-mixed" if shows and _MIXED.get(tag, _never)(lower, where, rules) else tag)
    if section in rules.section_tags:
        tags.add(rules.section_tags[section])
        if section == "comparison" and words <= rules.comparison:
            tags.add("comparison")
    return tuple(sorted(tags))


def _first(lower: str, words: set[str], rule: TagRule) -> int:
    """Return where a rule first holds, or -1."""
    if not rule.core.isdisjoint(words) and words <= rule.only:
        return 0
    places = [] if rule.words.isdisjoint(words) else [lower.find(word) for word in rule.words & words]
    if rule.phrases:
        for part in rule.gate:  # an expression without any of its letters cannot match; looking is cheap
            if part in lower:
                match = rule.phrases.search(lower)
                if match:
                    places.append(match.start())
                break
    return min(places, default=-1)


def _never(lower: str, where: int, rules: Rules) -> bool:
    return False


def _anywhere(lower: str, where: int, rules: Rules) -> bool:
    return True


def _names_finding(lower: str, words: Iterable[str], rules: Rules) -> bool:
    return not rules.finding.isdisjoint(words) or rules.stems.search(lower) is not None


def _before(lower: str, where: int, rules: Rules) -> bool:
    """Say whether a finding is named before an advice, and not as its condition."""
    before = lower[:where]
    return not lower.startswith(rules.condition) and _names_finding(before, _WORD.findall(before), rules)


def _seen(lower: str, where: int, rules: Rules) -> bool:
    """Say whether a sentence of history goes on to tell what a picture shows."""
    if _before(lower, where, rules):
        return True
    for match in _WORD.finditer(lower):
        if match[0] in rules.picture:
            return _names_finding(lower[match.end() :], _WORD.findall(lower, match.start()), rules)
    return False


_MIXED: dict[str, Callable[[str, int, Rules], bool]] = {
    "prior": _anywhere,
    "recommendation": _before,
    "history": _seen,
}
"""When a sentence with a tag also names a finding of its own, so that dropping it would lose the finding."""
