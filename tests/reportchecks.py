"""What no reading of a report may change, counted without any code of the parser or the renderer.

Run on the reports of tables, it prints what was found and what was altered as JSON::

    python tests/reportchecks.py TABLE...
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from medvl.preprocess.reports import all_changes, changes, parse_report
from medvl.records import Change, Report
from medvl.specs import RAW_PLACEHOLDER, ReportSpec, View

SPEC = ReportSpec()
VIEWS: tuple[View, ...] = ("retrieval", "generation")

NUMBER = re.compile(r"\d+(?:[.,]\d+)*\s?(?:mm|cm|ml|cc|%|HU|kVp?|mAs|bpm|L|F|°)?(?![A-Za-z])")
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


def altered(report: Report, spec: ReportSpec = SPEC) -> list[tuple[str, str]]:
    """Return each kept sentence and its rendering where numbers, comparators, negations or sides differ."""
    language = spec.parser.partition("-")[0]
    found = []
    for view in VIEWS:
        for sentence, words in zip(spec.kept(report, view), spec.render(report, view), strict=True):
            original = report.text[sentence.start : sentence.end]
            if invariants(words, language) != invariants(original, language):
                found.append((original, words))
    return found


def check_medicine(text: str, spec: ReportSpec = SPEC) -> Report:
    """Each sentence of each view has the numbers, comparators, negations and sides of its original."""
    report = parse_report(text, parser=spec.parser)
    assert altered(report, spec) == []
    return report


def summary(texts: Iterable[str]) -> dict[str, object]:
    """Count what is found in reports, what the views keep of it, and every breach of the rules above."""
    count: Counter[str] = Counter()
    sections: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for text in texts:
        report = parse_report(text)
        check_spans(report)
        check_changes(report)
        count["reports"] += 1
        sections.update({section.name for section in report.sections})
        count["sentences"] += len(report.sentences)
        count["altered"] += len(altered(report))
        for view in VIEWS:
            rendered = SPEC.render(report, view)
            count[f"sentences in {view}"] += len(rendered)
            kinds.update(kind for words in rendered for kind, _ in invariants(words).elements())
            raw = RAW_PLACEHOLDER.findall(" ".join(rendered).replace(SPEC.placeholder, ""))
            count["raw placeholders"] += len(raw)
        reasons.update(f"{change.reason} ({change.view})" for change in all_changes(report, SPEC))
    return {
        **count,
        "sections": dict(sections.most_common()),
        "counted in the views": dict(kinds.most_common()),
        "changes": dict(reasons.most_common(16)),
    }


def main(tables: Sequence[str]) -> None:
    """Print the summary of each table, one line each."""
    from medvl.preprocess.sources.columns import guess_columns
    from medvl.preprocess.sources.tables import read_table

    for table in tables:
        frame = read_table(Path(table))
        columns = guess_columns(frame)
        texts = [text for row in frame.to_dict("records") if (text := columns.report_text(row))]
        sys.stdout.write(json.dumps({"set": Path(table).parent.name} | summary(texts)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
