"""A free-text report → sections, sentences and tags, as spans of the original text; nothing is rewritten.

The parser only *names* things; which sentences a text view keeps is the business of
:class:`~medvl.specs.ReportSpec`, and :func:`changes` lists every span that a view leaves out, with its
reason. Outside headings, list markers and white space, each character of a report belongs to exactly one
sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from medvl.errors import BadReport
from medvl.preprocess.reports.marks import read_sentence
from medvl.preprocess.reports.rules import PARSERS, load_rules
from medvl.preprocess.reports.spans import find_sections, sentence_spans
from medvl.records import Change, Report, Sentence
from medvl.specs import ReportSpec, View

__all__ = [
    "MAX_CHARACTERS",
    "PARSERS",
    "all_changes",
    "changes",
    "hygiene_notes",
    "mask_identity",
    "parse_report",
]

MAX_CHARACTERS = 200_000
"""The longest text that is parsed; the longest real report seen has some 9,000 characters."""


def parse_report(text: str, *, parser: str = "en-1") -> Report:
    r"""Find sections, sentences and tags; any string of allowed length gives a report, and none is altered.

    Headings are known names in any case, with small misspellings, on a line of their own or inline; text
    before the first heading, or without any, is section ``body``. Sub-headings such as ``LUNGS:`` stay
    text. Sentences end at a full stop unless it belongs to a number, an abbreviation or an initial; at
    blank lines, at list items, and at a line that was ended on purpose: one that had room for the next
    line's first word.

    A sentence that compares with an earlier study is tagged ``prior``, or ``prior-mixed`` when it also
    names something the picture shows; an advice ``recommendation`` or, after a finding,
    ``recommendation-mixed``. The default :class:`~medvl.specs.ReportSpec` drops only the unmixed ones
    from the generation view, so no finding is lost. ``comparison`` marks the mere name of an earlier
    study.

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
    rules = load_rules(parser)
    sections = tuple(find_sections(text, rules))
    wrap = max(map(len, text.splitlines()), default=0)
    sentences: list[Sentence] = []
    marks: list[Change] = []
    for section in sections:
        for start, end in sentence_spans(text, section, rules, wrap):
            tags, inside = read_sentence(text[start:end], section.name, parser)
            sentences.append(Sentence(start, end, section.name, tags))
            marks += [Change(start + m.start, start + m.end, m.reason, m.shown) for m in inside]
    return Report(text, sections, tuple(sentences), tuple(marks))


def changes(report: Report, spec: ReportSpec, *, view: View = "retrieval") -> tuple[Change, ...]:
    """List every span of the text that a view leaves out or shows otherwise, in order, each with its reason.

    Making the changes in the text gives the view, up to white space and NFC composition. Reasons:
    ``heading``; ``list marker``; ``section NAME`` (the view does not read it); the tags for which a sentence
    is dropped, joined by ``+``; and inside kept sentences those of :meth:`~medvl.specs.ReportSpec.edits`.

    Examples:
        >>> report = parse_report("IMPRESSION: No change. Discussed with Dr. Roe by phone.")
        >>> [(change.start, change.reason) for change in changes(report, ReportSpec())]
        [(0, 'heading'), (23, 'communication')]
    """
    inside = {sentence.start: edits for sentence, edits in spec.edits(report, view)}
    found: list[tuple[int, int, str, str]] = []
    edge, place = 0, 0
    for section in report.sections:
        _ink(found, report.text, edge, section.start, "heading")
        edge = section.start
        while place < len(report.sentences) and report.sentences[place].start < section.end:
            sentence = report.sentences[place]
            place += 1
            _ink(found, report.text, edge, sentence.start, "list marker")
            if sentence.start in inside:
                found += [(c.start, c.end, c.reason, c.shown) for c in inside[sentence.start]]
            else:
                found.append((sentence.start, sentence.end, spec.reason(sentence, view) or "", ""))
            edge = sentence.end
        _ink(found, report.text, edge, section.end, "list marker")
        edge = section.end
    _ink(found, report.text, edge, len(report.text), "heading")
    return tuple(Change(*change, view) for change in found)


def all_changes(report: Report, spec: ReportSpec) -> tuple[Change, ...]:
    """List the changes of both views; one that both make is listed once, with view ``both``.

    Examples:
        >>> report = parse_report("FINDINGS: A stable left effusion. CT is recommended.")
        >>> [(change.reason, change.view) for change in all_changes(report, ReportSpec())]
        [('heading', 'both'), ('prior phrase', 'generation'), ('recommendation', 'generation')]
    """
    both: dict[tuple[int, int, str, str], str] = {}
    for view in ("retrieval", "generation"):
        for change in changes(report, spec, view=view):
            key = change.start, change.end, change.reason, change.shown
            both[key] = "both" if key in both else view
    return tuple(Change(*key, view) for key, view in sorted(both.items()))


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
    return Report("".join([*pieces, report.text[edge:]]), report.sections, report.sentences, report.marks)


def _ink(found: list[tuple[int, int, str, str]], text: str, start: int, end: int, reason: str) -> None:
    """Add the span without its white space, if anything is left of it."""
    body = text[start:end]
    stripped = body.strip()
    if stripped:
        first = start + body.index(stripped[0])
        found.append((first, first + len(stripped), reason, ""))
