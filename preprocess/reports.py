"""A free-text report → sections, sentences and tags, as spans of the original text; nothing is rewritten.

The parser only *names* things; which sentences a text view keeps is the :class:`~medvl.specs.ReportSpec`'s
business, and :func:`changes` lists every span that a view leaves out, with its reason. Outside headings, list markers
and white space, each character of a report belongs to exactly one sentence.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from medvl.errors import BadReport, ConfigError, nearest
from medvl.records import Report, Section, Sentence
from medvl.specs import PLACEHOLDER, ReportSpec

__all__ = ["MAX_CHARACTERS", "PARSERS", "Change", "changes", "hygiene_notes", "mask_identity", "parse_report"]

MAX_CHARACTERS = 200_000
"""The longest text that is parsed; the longest real report seen has some 9,000 characters."""

PARSERS = ("en-1",)
"""Versions of the rules; a store, a checkpoint and a bundle name the one they were made with."""


@dataclass(frozen=True)
class Change:
    """A span of the original text that a view does not show as it stands, and why."""

    start: int
    end: int
    reason: str


def parse_report(text: str, *, parser: str = "en-1") -> Report:
    r"""Find sections, sentences and tags; any string of allowed length gives a report, and none is altered.

    Headings are known names in any case, with small misspellings, on a line of their own or inline; text before the
    first heading, or without any, is section ``body``. Sub-headings such as ``LUNGS:`` stay text. Sentences end at
    a full stop unless it belongs to a number, an abbreviation or an initial; at blank lines, at list items, and
    at a line that was ended on purpose: one that had room for the next line's first word.

    A sentence that compares with an earlier study is tagged ``prior``, or ``prior-mixed`` when it also names something
    the picture shows; an advice ``recommendation`` or, after a finding, ``recommendation-mixed``. The default
    :class:`~medvl.specs.ReportSpec` drops only the unmixed ones from the generation view, so no finding is lost.
    ``comparison`` marks the mere name of an earlier study.

    Args:
        text: the report as it was given.
        parser: version of the rules, as in ``ReportSpec.parser``.

    Raises:
        BadReport: the text is longer than ``MAX_CHARACTERS``.
        ConfigError: unknown parser version.

    Examples:
        >>> report = parse_report("FINDINGS: A 4.2 cm mass. No effusion. IMPRESSION: 1. Mass.")
        >>> [section.name for section in report.sections]
        ['findings', 'impression']
        >>> [report.sentence_text(sentence) for sentence in report.sentences]
        ['A 4.2 cm mass.', 'No effusion.', 'Mass.']
    """
    if len(text) > MAX_CHARACTERS:
        raise BadReport(
            f"the report has {len(text)} characters; allowed are at most {MAX_CHARACTERS}.",
            hint="Check the text column: it may hold more than one report.",
        )
    rules = _rules(parser)
    sections = tuple(_sections(text, rules))
    wrap = max(map(len, text.splitlines()), default=0)
    sentences = tuple(
        Sentence(start, end, section.name, _tags(text[start:end], section.name, rules))
        for section in sections
        for start, end in _sentence_spans(text, section, rules, wrap)
    )
    return Report(text, sections, sentences)


def changes(
    report: Report, spec: ReportSpec, *, view: Literal["retrieval", "generation"] = "retrieval"
) -> list[Change]:
    """List every span of the text that a view leaves out or replaces, in order, each with its reason.

    Reasons: ``heading``; ``list marker``; ``section NAME`` (the view does not read it); the tags for
    which a sentence is dropped, joined by ``+``; ``placeholder`` and ``invisible character`` inside kept
    sentences. White space folded to one blank, and NFC composition, are not listed.

    Examples:
        >>> report = parse_report("IMPRESSION: No change. Discussed with Dr. Roe by phone.")
        >>> [(change.start, change.reason) for change in changes(report, ReportSpec())]
        [(0, 'heading'), (23, 'communication')]
    """
    kept = set(spec.kept(report, view))
    found: list[Change] = []
    edge = 0
    for section in report.sections:
        found += _ink(report.text, edge, section.start, "heading")
        edge = section.start
        for sentence in (s for s in report.sentences if section.start <= s.start < section.end):
            found += _ink(report.text, edge, sentence.start, "list marker")
            if sentence in kept:
                found += _inside(report.text, sentence)
            else:
                found.append(Change(sentence.start, sentence.end, spec.reason(sentence, view) or "kept"))
            edge = sentence.end
        found += _ink(report.text, edge, section.end, "list marker")
        edge = section.end
    return found + _ink(report.text, edge, len(report.text), "heading")


def hygiene_notes(text: str) -> tuple[str, ...]:
    r"""Count the characters that rendering takes out, as notes for the record.

    Examples:
        >>> hygiene_notes("no\u200b effusion\x00")
        ('report: 1 control character removed', 'report: 1 format character removed')
    """
    kinds = {"Cc": "control", "Cf": "format", "Cs": "surrogate"}
    count = Counter(
        kinds[kind] for char in text if not char.isspace() and (kind := unicodedata.category(char)) in kinds
    )
    return tuple(f"report: {n} {kind} character{'s' * (n > 1)} removed" for kind, n in sorted(count.items()))


def mask_identity(report: Report) -> Report:
    """Return the report with each ``identity`` sentence overwritten by underscores; every span stays valid.

    This helps; it does not guarantee that a text names nobody.

    Examples:
        >>> mask_identity(parse_report("No effusion. Signed by Jane Roe.")).text
        'No effusion. ______ __ ____ ____'
    """
    pieces, edge = [], 0
    for sentence in report.sentences:
        if "identity" in sentence.tags:
            pieces += [
                report.text[edge : sentence.start],
                re.sub(r"\S", "_", report.text[sentence.start : sentence.end]),
            ]
            edge = sentence.end
    return Report("".join([*pieces, report.text[edge:]]), report.sections, report.sentences)


def _ink(text: str, start: int, end: int, reason: str) -> list[Change]:
    """Return the span without its white space, if anything is left of it."""
    body = text[start:end]
    stripped = body.strip()
    if not stripped:
        return []
    first = start + body.index(stripped[0])
    return [Change(first, first + len(stripped), reason)]


def _inside(text: str, sentence: Sentence) -> Iterator[Change]:
    for match in PLACEHOLDER.finditer(text, sentence.start, sentence.end):
        yield Change(match.start(), match.end(), "placeholder")
    for place in range(sentence.start, sentence.end):
        char = text[place]
        if not (char.isascii() and char.isprintable()) and not char.isspace():
            if unicodedata.category(char) in ("Cc", "Cf", "Cs"):
                yield Change(place, place + 1, "invisible character")


# --- rules ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TagRule:
    words: frozenset[str]
    phrases: re.Pattern[str] | None


@dataclass(frozen=True)
class _Rules:
    headings: dict[str, str]
    strict: frozenset[str]
    lines: re.Pattern[str]
    section_tags: dict[str, str]
    abbreviations: frozenset[str]
    finding: frozenset[str]
    tags: dict[str, _TagRule]


@functools.cache
def _rules(parser: str) -> _Rules:
    if parser not in PARSERS:
        raise ConfigError(f"unknown report parser '{parser}'.", hint=nearest(parser, PARSERS))
    data = yaml.safe_load((Path(__file__).parent / "report_rules_en.yaml").read_text("utf-8"))
    headings = {heading: name for name, many in data["sections"].items() for heading in many}
    names = "|".join(sorted(map(re.escape, headings), key=len, reverse=True))
    return _Rules(
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
            tag: _TagRule(
                frozenset(rule.get("words", ())),
                re.compile("|".join(f"(?:{phrase})" for phrase in rule["phrases"]))
                if "phrases" in rule
                else None,
            )
            for tag, rule in data["tags"].items()
        },
    )


# --- sections ---------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z][A-Za-z /&'-]*$")
_LEAD = " \t*#_-\u2022\ufeff\u200b"


def _sections(text: str, rules: _Rules) -> Iterator[Section]:
    """Yield the bodies between headings; together with the headings they partition the text."""
    name, start = "body", 0
    for head_start, head_end, heading in _headings(text, rules):
        if name != "body" or text[start:head_start].strip():
            yield Section(name, start, head_start)
        name, start = heading, head_end
    yield Section(name, start, len(text))


def _headings(text: str, rules: _Rules) -> list[tuple[int, int, str]]:
    found: dict[int, tuple[int, int, str]] = {}
    for match in rules.lines.finditer(text):
        group = "alone" if match["alone"] else "capitals"
        start, end = match.span(group)
        found[start] = (start, end, rules.headings[match[group].lower()])
    colon = text.find(":")
    while colon >= 0:
        heading = _heading_before(text, colon, rules)
        if heading:
            found[heading[0]] = heading
        colon = text.find(":", colon + 1)
    ordered: list[tuple[int, int, str]] = []
    for start, end, name in sorted(found.values()):
        if not ordered or start >= ordered[-1][1]:
            ordered.append((start, end, name))
    return ordered


def _heading_before(text: str, colon: int, rules: _Rules) -> tuple[int, int, str] | None:
    """Return the heading that a colon ends, if the words before it are one."""
    low = max(0, colon - 48)
    chunk = text[low:colon].rstrip(" \t*")
    match = _NAME.search(chunk)
    if match is None:
        return None
    words = [(m.start() + match.start() + low, m[0]) for m in re.finditer(r"[^ ]+", match[0])]
    stop = low + len(chunk)
    for place, _ in words:  # the longest known name that ends at the colon
        phrase = text[place:stop]
        name = rules.headings.get(" ".join(phrase.lower().split()))
        if name and _opens(text, place, phrase, strict=phrase.lower() in rules.strict):
            return place, colon + 1, name
    place = words[0][0]
    if len(words) == 1 and len(words[0][1]) >= 6 and _opens(text, place, words[0][1], strict=True):
        name = _misspelt(words[0][1].lower())
        if name:
            return place, colon + 1, name
    return None


def _opens(text: str, place: int, phrase: str, *, strict: bool) -> bool:
    """Say whether a heading may stand here: at a line's start; in capitals; or after a sentence's end."""
    before = text[:place].rstrip(_LEAD) if place < 64 else text[place - 64 : place].rstrip(_LEAD)
    if not before or before[-1] in "\r\n":
        return True
    if not text[place - 1].isspace() and text[place - 1] not in '."*':
        return False
    return phrase.isupper() or (not strict and before[-1] in '.;!?:")]')


_MAIN = (
    "findings",
    "impression",
    "indication",
    "comparison",
    "technique",
    "history",
    "conclusion",
    "examination",
)


@functools.lru_cache(maxsize=4096)
def _misspelt(word: str) -> str | None:
    """Return the section whose main heading is within two edits (one for short names) of ``word``."""
    for name in _MAIN:
        if abs(len(name) - len(word)) <= 2 and _edits(word, name) <= (2 if len(name) >= 8 else 1):
            return "impression" if name == "conclusion" else name
    return None


def _edits(a: str, b: str) -> int:
    """Count insertions, deletions, substitutions and swaps of neighbours between two words."""
    two: list[int] = []
    one = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(one[j] + 1, row[j - 1] + 1, one[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], two[j - 2] + 1)
        two, one = one, row
    return one[-1]


# --- sentences --------------------------------------------------------------------------------------

_END = re.compile(
    r"(?P<stop>[.!?\u2026]+[\"'\u201d\u2019)\]]{0,2})(?=\s|$)"  # a stop before white space
    r"|(?P<tight>(?<=[a-z0-9)%])\.)(?=[A-Z][a-z])"  # "at T4.No effusion"
    r"|(?P<blank>\n[ \t\r]*\n\s*)"
    r"|(?P<item>\n[ \t]*(?=[-*\u2022\u00b7\u2013]\s|\(?\d{1,2}[.)]\s*[A-Za-z(]))"
    r"|(?P<line>\n)(?=[ \t]*[A-Z])"
    r"|(?P<quote>(?<=\s)\"(?=\s+[A-Z]))"  # a stray quotation mark used as a bullet
)
_MARKER = re.compile(
    r"\s*(?:[-*\u2022\u00b7\u2013](?=\s)|\"(?=\s)|\(?(?P<number>\d{1,2})(?:[.)](?=\s|[A-Za-z(])))\s*"
)
_LAST_WORD = re.compile(r"[\w.'-]*$")


def _sentence_spans(text: str, section: Section, rules: _Rules, wrap: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of a section; only white space and list markers lie between them."""
    start, item = section.start, 0
    while start < section.end:
        start, item = _skip_markers(text, start, section.end, item)
        end = _sentence_end(text, start, section.end, rules, wrap, item)
        first, last = start, end
        while first < last and text[first].isspace():
            first += 1
        while last > first and text[last - 1].isspace():
            last -= 1
        if first < last:
            yield first, last
        start = max(end, start + 1)


def _skip_markers(text: str, start: int, end: int, item: int) -> tuple[int, int]:
    """Step over a bullet, or over the number that a list would have next."""
    match = _MARKER.match(text, start, end)
    if match is None or match.end() >= end:
        return start, item
    if match["number"] is None:
        return match.end(), item
    number = int(match["number"])
    return (match.end(), number) if number in (1, item + 1) else (start, item)


def _sentence_end(text: str, start: int, end: int, rules: _Rules, wrap: int, item: int) -> int:
    for match in _END.finditer(text, start, end):
        if match.lastgroup == "quote":
            if match.start() > start:
                return match.start()
        elif match.lastgroup == "line":
            if _ended_on_purpose(text, match.start(), wrap):
                return match.end()
        elif match.lastgroup in ("blank", "item") or _is_stop(text, start, match, end, rules, item):
            return match.end()
    return end


def _ended_on_purpose(text: str, newline: int, wrap: int) -> bool:
    """Say whether the next line's first word would still have fitted on the line that ends here."""
    line = newline - text.rfind("\n", 0, newline) - 1
    word = re.compile(r"\s*(\S{1,40})").match(text, newline)
    return line + 1 + (len(word[1]) if word else 0) <= wrap and text[newline - 1 : newline] not in (
        ",",
        "-",
        "/",
    )


def _is_stop(text: str, start: int, match: re.Match[str], end: int, rules: _Rules, item: int) -> bool:
    """Say whether a mark ends the sentence, rather than a number, an abbreviation or an initial."""
    mark = match[0]
    word = _LAST_WORD.search(text, max(start, match.start() - 24), match.start())
    last = word[0] if word else ""
    following = text[match.end() : min(end, match.end() + 24)].lstrip()
    nearby = following[:1]
    if not following or mark[0] in "!?":
        return True
    if mark.count(".") > 1 or "\u2026" in mark:
        return nearby.isupper() or nearby.isdigit()
    if last.lower().strip(".") in rules.abbreviations and _abbreviates(last.lower(), nearby):
        return False
    if last.isdigit() and nearby.isdigit():
        marker = _MARKER.match(following)
        return bool(marker and marker["number"] and int(marker["number"]) == item + 1)
    return not (len(last) == 1 and last.isupper() and _initial(text, start, match.start() - 1, nearby))


def _abbreviates(word: str, nearby: str) -> bool:
    """``no.`` abbreviates only before a number; a side or a unit only before a small letter."""
    if word in ("no", "nos"):
        return nearby.isdigit()
    if word in ("dr", "mr", "mrs", "ms", "prof", "vs", "e.g", "i.e", "fig", "figs", "cf", "st"):
        return True
    return not nearby.isupper()


def _initial(text: str, start: int, place: int, nearby: str) -> bool:
    """Say whether the single capital at ``place`` is an initial: after a title or a name, before a name."""
    before = text[max(start, place - 24) : place].split()
    return bool(before) and before[-1][0].isupper() and nearby.isupper()


# --- tags -------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z][a-z0-9-]*")
_MIXED = ("prior", "recommendation")


def _tags(sentence: str, section: str, rules: _Rules) -> tuple[str, ...]:
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


def _first(lower: str, words: set[str], rule: _TagRule) -> int:
    """Return where a rule first holds, or -1."""
    places = [lower.find(word) for word in rule.words & words]
    match = rule.phrases.search(lower) if rule.phrases else None
    if match:
        places.append(match.start())
    return min(places, default=-1)


def _finding_before(lower: str, rules: _Rules) -> bool:
    return not lower.startswith("if ") and not rules.finding.isdisjoint(_WORD.findall(lower))
