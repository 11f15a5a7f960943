"""What no reading of a report may change, counted without any code of the parser or the renderer."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from medvl.preprocess.reports import all_changes, changes, parse_report
from medvl.records import Change, Report
from medvl.specs import ReportSpec, View

SPEC = ReportSpec()
VIEWS: tuple[View, ...] = ("retrieval", "generation")

NUMBER = re.compile(r"\d+(?:[.,]\d+)*\s?(?:mm|cm|ml|cc|%|HU|kVp?|mAs|bpm|L|F|°)?(?![a-z])")
SIGNS = re.compile(r"[<>≤≥=±~]")
WORDS = {
    "en": {
        "comparator": r"(?:less|greater|more|larger|smaller) than",
        "negation": r"no|not|without|none|nor|never|absent|denies|negative|free of|cannot",
        "side": r"left|right|bilateral(?:ly)?|unilateral|both|[LR]",
    },
    "es": {
        "comparator": r"(?:menor|mayor|más|menos)(?:es)? (?:que|de)",
        "negation": r"no|sin|ni|nunca|tampoco|ningun[ao]?|ningún|ausencia|niega|descarta\w*",
        "side": r"izquierd[ao]s?|izquierd|derech[ao]s?|derech|bilateral(?:es)?|ambos|ambas",
    },
    "de": {
        "comparator": r"(?:kleiner|größer|weniger|mehr) als|unter|über|bis",
        "negation": r"kein\w*|nicht|ohne|weder|noch|nie",
        "side": r"links|rechts|linke\w*|rechte\w*|li|re|beidseit\w*|bds|bilateral\w*",
    },
}
PLACEHOLDERS = re.compile(r"_{2,}|X{3,}|x{4,}|\[\*\*.*?\*\*\]|\[[a-z-]+\]", re.S)


def visible(text: str) -> str:
    """Return the text as a reader sees it."""
    seen = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return " ".join(unicodedata.normalize("NFC", seen).split())


def invariants(text: str, language: str = "en") -> Counter[tuple[str, str]]:
    text = PLACEHOLDERS.sub(" \u2016 ", visible(text))
    count = Counter(("number", re.sub(r"\s", "", match)) for match in NUMBER.findall(text))
    count.update(("comparator", sign) for sign in SIGNS.findall(text))
    for kind, words in WORDS[language].items():
        count.update((kind, match.lower()) for match in re.findall(rf"(?i:\b(?:{words})\b)", text))
    return count


def made(text: str, listed: Sequence[Change], view: View) -> str:
    """Make the changes of one view in the text, as the record's documentation says it."""
    pieces, edge = [], 0
    for change in sorted((c for c in listed if c.view in (view, "both")), key=lambda c: c.start):
        assert edge <= change.start < change.end <= len(text)
        pieces += [text[edge : change.start], change.shown]
        edge = change.end
    return "".join([*pieces, text[edge:]])


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
    for mark in report.marks:
        assert any(s.start <= mark.start < mark.end <= s.end for s in report.sentences)
    covered = [False] * len(text)
    shown = {(s.start, s.end) for s in SPEC.kept(report, "retrieval")}
    for start, end in shown | {(c.start, c.end) for c in changes(report, SPEC)}:
        covered[start:end] = [True] * (end - start)
    assert all(covered[i] or char.isspace() for i, char in enumerate(text))


def check_changes(report: Report, spec: ReportSpec = SPEC) -> None:
    """The listed changes, made in the text, give each view: its sentences word for word, and nothing else."""
    both = all_changes(report, spec)
    for view in VIEWS:
        rendered, listed = spec.render(report, view), changes(report, spec, view=view)
        assert listed == tuple(dataclasses.replace(c, view=view) for c in both if c.view in (view, "both"))
        # Two sentences, or a heading and a sentence, may touch: "at T4.No effusion".
        assert "".join(visible(made(report.text, listed, view)).split()) == "".join("".join(rendered).split())
        for sentence, words in zip(spec.kept(report, view), rendered, strict=True):
            inside = [
                dataclasses.replace(c, start=c.start - sentence.start, end=c.end - sentence.start)
                for c in listed
                if sentence.start <= c.start < sentence.end
            ]
            assert visible(made(report.text[sentence.start : sentence.end], inside, view)) == words


def check_medicine(text: str, spec: ReportSpec = SPEC) -> Report:
    """Each sentence of each view has the numbers, comparators, negations and sides of its original."""
    report = parse_report(text, parser=spec.parser)
    language = spec.parser.partition("-")[0]
    for view in VIEWS:
        kept, rendered = spec.kept(report, view), spec.render(report, view)
        assert len(kept) == len(rendered)
        for sentence, words in zip(kept, rendered, strict=True):
            original = text[sentence.start : sentence.end]
            assert invariants(words, language) == invariants(original, language), (original, words)
    return report
