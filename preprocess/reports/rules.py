"""The rules of the report parser, read from data, and the tags that they give a sentence."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from medvl.errors import ConfigError, nearest
from medvl.specs import PLACEHOLDER

__all__ = ["PARSERS", "Rules", "find_tags", "load_rules"]

PARSERS = ("en-1",)
"""Versions of the rules; a store, a checkpoint and a bundle name the one they were made with."""


@dataclass(frozen=True)
class TagRule:
    """A tag holds where a word or a phrase occurs, or where all words are ``only`` and one is ``core``."""

    words: frozenset[str]
    phrases: re.Pattern[str] | None
    core: frozenset[str]
    only: frozenset[str]


@dataclass(frozen=True)
class Rules:
    """The rules of one parser version.

    Attributes:
        headings: heading in lower case to section name; ``strict`` ones are common words too.
        lines: finds headings that no colon ends.
        section_tags: section name to the tag of all its sentences.
        abbreviations: words before a full stop that ends no sentence.
        finding: words for what a picture can show; ``picture``: words for the picture itself;
            ``comparison``: all words that the mere name of an earlier study may have.
        tags: tag to its rule.
    """

    headings: dict[str, str]
    strict: frozenset[str]
    lines: re.Pattern[str]
    section_tags: dict[str, str]
    abbreviations: frozenset[str]
    finding: frozenset[str]
    picture: frozenset[str]
    comparison: frozenset[str]
    tags: dict[str, TagRule]


@functools.cache
def load_rules(parser: str) -> Rules:
    """Read the rules of a parser version.

    Raises:
        ConfigError: there is no such version.
    """
    if parser not in PARSERS:
        raise ConfigError(f"unknown report parser '{parser}'.", hint=nearest(parser, PARSERS))
    data = yaml.safe_load((Path(__file__).parent / "rules_en.yaml").read_text("utf-8"))
    headings = {heading: name for name, many in data["sections"].items() for heading in many}
    names = "|".join(sorted(map(re.escape, headings), key=len, reverse=True))
    body = r"\s+(?:-\s|[A-Z][a-z]|[A-Z]\s|\d{1,2}[.)]\s)"
    return Rules(
        headings=headings,
        strict=frozenset(data["strict"]),
        # A heading without a colon: alone on its line, or in capitals at the start of a line or a sentence.
        lines=re.compile(
            rf"^[ \t#*]*(?P<alone>(?i:{names}))[ \t*]*$"
            rf"|(?:^|(?<=[.\n]))[ \t]*(?P<capitals>{names.upper()})(?={body})",
            re.MULTILINE,
        ),
        section_tags=data["section_tags"],
        abbreviations=frozenset(data["abbreviations"]),
        finding=frozenset(data["finding"]),
        picture=frozenset(data["picture"]),
        comparison=frozenset(data["comparison"]),
        tags={tag: _tag_rule(rule) for tag, rule in data["tags"].items()},
    )


def _tag_rule(rule: dict[str, list[str]]) -> TagRule:
    phrases = "|".join(f"(?:{phrase})" for phrase in rule.get("phrases", ()))
    words, core, only = (frozenset(rule.get(key, ())) for key in ("words", "core", "only"))
    return TagRule(words, re.compile(phrases) if phrases else None, core, only | core)


_WORD = re.compile(r"[a-z][a-z0-9-]*")


@functools.lru_cache(maxsize=1 << 14)  # reports repeat their sentences: two in three of real ones
def find_tags(sentence: str, section: str, parser: str) -> tuple[str, ...]:
    """Name what a sentence is besides a description of the picture."""
    rules = load_rules(parser)
    lower = sentence.lower()
    bare = PLACEHOLDER.sub("", sentence).lower()
    tags = {"placeholder"} if len(bare) != len(lower) else set()
    if not any(char.isalnum() for char in bare):
        return tuple(sorted(tags | {"empty"}))
    words = set(_WORD.findall(bare))
    shows = not rules.finding.isdisjoint(words)
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
    if words & rule.core and words <= rule.only:
        return 0
    places = [lower.find(word) for word in rule.words & words]
    match = rule.phrases.search(lower) if rule.phrases else None
    if match:
        places.append(match.start())
    return min(places, default=-1)


def _never(lower: str, where: int, rules: Rules) -> bool:
    return False


def _anywhere(lower: str, where: int, rules: Rules) -> bool:
    return True


def _before(lower: str, where: int, rules: Rules) -> bool:
    """Say whether a finding is named before an advice, and not as its condition."""
    return not lower.startswith("if ") and not rules.finding.isdisjoint(_WORD.findall(lower[:where]))


def _seen(lower: str, where: int, rules: Rules) -> bool:
    """Say whether a sentence of history goes on to tell what a picture shows."""
    if _before(lower, where, rules):
        return True
    words = _WORD.findall(lower)
    first = next((i for i, word in enumerate(words) if word in rules.picture), len(words))
    return not rules.finding.isdisjoint(words[first:])


_MIXED: dict[str, Callable[[str, int, Rules], bool]] = {
    "prior": _anywhere,
    "recommendation": _before,
    "history": _seen,
}
"""When a sentence with a tag also names a finding of its own, so that dropping it would lose the finding."""
