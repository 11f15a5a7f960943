"""The rules of the report parser, read from data, and the tags that they give a sentence."""

from __future__ import annotations

import functools
import re
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
    words: frozenset[str]
    phrases: re.Pattern[str] | None


@dataclass(frozen=True)
class Rules:
    headings: dict[str, str]
    strict: frozenset[str]
    lines: re.Pattern[str]
    section_tags: dict[str, str]
    abbreviations: frozenset[str]
    finding: frozenset[str]
    tags: dict[str, TagRule]


@functools.cache
def load_rules(parser: str) -> Rules:
    if parser not in PARSERS:
        raise ConfigError(f"unknown report parser '{parser}'.", hint=nearest(parser, PARSERS))
    data = yaml.safe_load((Path(__file__).parent / "report_rules_en.yaml").read_text("utf-8"))
    headings = {heading: name for name, many in data["sections"].items() for heading in many}
    names = "|".join(sorted(map(re.escape, headings), key=len, reverse=True))
    return Rules(
        headings=headings,
        strict=frozenset(data["strict"]),
        # A heading without a colon: alone on its line, or in capitals at the start of a line or a sentence.
        lines=re.compile(
            rf"^[ \t#*]*(?P<alone>(?i:{names}))[ \t*]*$"
            rf"|(?:^|(?<=[.\n]))[ \t]*(?P<capitals>{names.upper()})(?=\s+(?:-\s|[A-Z][a-z]|[A-Z]\s|\d{{1,2}}[.)]\s))",
            re.MULTILINE,
        ),
        section_tags=data["section_tags"],
        abbreviations=frozenset(data["abbreviations"]),
        finding=frozenset(data["finding"]["words"]),
        tags={
            tag: TagRule(
                frozenset(rule.get("words", ())),
                re.compile("|".join(f"(?:{phrase})" for phrase in rule["phrases"]))
                if "phrases" in rule
                else None,
            )
            for tag, rule in data["tags"].items()
        },
    )


_WORD = re.compile(r"[a-z][a-z0-9-]*")
_MIXED = ("prior", "recommendation")


def find_tags(sentence: str, section: str, rules: Rules) -> tuple[str, ...]:
    """Name what a sentence is besides a description of the picture."""
    lower = sentence.lower()
    tags: set[str] = set()
    bare = PLACEHOLDER.sub("", sentence).lower()
    if len(bare) != len(lower):
        tags.add("placeholder")
    words = set(_WORD.findall(bare))
    if not words:
        return tuple(sorted(tags if any(c.isalnum() for c in bare) else tags | {"empty"}))
    shows = not rules.finding.isdisjoint(words)
    for tag, rule in rules.tags.items():
        where = _first(lower, words, rule)
        if where >= 0:
            mixed = tag in _MIXED and shows and (tag == "prior" or _finding_before(lower[:where], rules))
            tags.add(f"{tag}-mixed" if mixed else tag)
    if section in rules.section_tags:
        tags.add(rules.section_tags[section])
        if section == "comparison" and not shows:
            tags.add("comparison")
    if shows:
        tags.discard("technique") if section not in ("technique", "examination") else None
    return tuple(sorted(tags))


def _first(lower: str, words: set[str], rule: TagRule) -> int:
    """Return where a rule first holds, or -1."""
    places = [lower.find(word) for word in rule.words & words]
    match = rule.phrases.search(lower) if rule.phrases else None
    if match:
        places.append(match.start())
    return min(places, default=-1)


def _finding_before(lower: str, rules: Rules) -> bool:
    return not lower.startswith("if ") and not rules.finding.isdisjoint(_WORD.findall(lower))
