"""What no reading of a report may change, counted without any code of the parser."""

from __future__ import annotations

import re
from collections import Counter

from medvl.preprocess.reports import changes, parse_report
from medvl.records import Report
from medvl.specs import ReportSpec, fold

SPEC = ReportSpec()

NUMBER = re.compile(r"\d+(?:[.,]\d+)*\s?(?:mm|cm|ml|cc|%|HU|kVp?|mAs|bpm|L|F|°)?(?![a-z])")
MEASURES = {
    "comparator": re.compile(r"[<>≤≥=±~]|(?:less|greater|more|larger|smaller) than", re.I),
    "negation": re.compile(
        r"\b(?:no|not|without|none|nor|never|absent|denies|negative|free of|cannot)\b", re.I
    ),
    "side": re.compile(r"\b(?:left|right|bilateral(?:ly)?|unilateral|both|[LR])\b", re.I),
}


def invariants(text: str) -> Counter[tuple[str, str]]:
    count = Counter(("number", re.sub(r"\s", "", match)) for match in NUMBER.findall(text))
    for kind, pattern in MEASURES.items():
        count.update((kind, re.sub(r"\s+", " ", match.lower())) for match in pattern.findall(text))
    return count


def check_spans(report: Report) -> None:
    """Spans slice, sections partition, and every visible character is in one heading, marker or sentence."""
    text = report.text
    edge = 0
    for section in report.sections:
        assert edge <= section.start <= section.end <= len(text)
        edge = section.end
    assert not report.sections or edge == len(text)
    edge = 0
    for sentence in report.sentences:
        assert edge <= sentence.start < sentence.end
        edge = sentence.end
        assert text[sentence.start : sentence.end].strip() == text[sentence.start : sentence.end]
        home = [s for s in report.sections if s.start <= sentence.start and sentence.end <= s.end]
        assert [s.name for s in home] == [sentence.section]
    covered = [False] * len(text)
    shown = {(s.start, s.end) for s in SPEC.kept(report, "retrieval")}
    for start, end in shown | {(c.start, c.end) for c in changes(report, SPEC)}:
        covered[start:end] = [True] * (end - start)
    assert all(covered[i] or char.isspace() for i, char in enumerate(text))


def check_medicine(text: str) -> None:
    """The view has the numbers, comparators, negations and sides of all that is not listed as left out."""
    report = parse_report(text)
    rest = list(text)
    for change in changes(report, SPEC):
        rest[change.start : change.end] = (SPEC.placeholder if change.reason == "placeholder" else " ")[
            : change.end - change.start
        ].ljust(change.end - change.start)
    expected = invariants(fold("".join(rest)))
    assert invariants(" ".join(SPEC.render(report, "retrieval"))) == expected
