"""How a parsed report becomes the two text views of a record."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

from medvl.records import Change, Report, Sentence
from medvl.specs.abbreviations import expansions
from medvl.specs.base import INVISIBLE, Spec, fold

__all__ = ["PLACEHOLDER", "RAW_PLACEHOLDER", "ReportSpec", "View"]

View: TypeAlias = Literal["retrieval", "generation"]

_RAW = (
    r"_{2,}|(?<![A-Za-z])(?:X{3,}|x{4,})(?![A-Za-z])|\[\*\*[^\]]{0,80}\*\*\]"
    r"|\[(?i:redacted|removed|deleted|anonymi[sz]ed|de-?identified)\]"
)
RAW_PLACEHOLDER = re.compile(_RAW)
"""What reports hold in place of a word: ``___`` (MIMIC), ``XXXX`` (IU X-ray), ``[**…**]``, ``[redacted]``."""

PLACEHOLDER = re.compile(
    _RAW + r"|\[(?:name|date|id|hospital|phone|age|number|time|address|email|url|place|organi[sz]ation)\]"
)
"""The raw placeholders, and the typed tokens that stand for them or that de-identification wrote."""


class ReportSpec(Spec):
    """What each text view keeps of a parsed report, and how its words are shown.

    No view holds a raw placeholder: the parser's rules drop a clause that says nothing else, and give the
    others a type (``[name]``, ``[date]`` …).

    Args:
        parser: name and version of the rules that found the sections, sentences, tags and marks; the tables
            of abbreviations belong to it.
        retrieval_drop, generation_drop: sentences with any of these tags are left out of the view.
        retrieval_sections, generation_sections: sections that the view reads, in the order of the
            text; empty means all of them.
        generation_priors: ``"phrase"`` leaves phrases that only compare with an earlier study ("stable",
            "as compared to the prior study") out of the sentences of the generation view: no single picture
            shows them; ``"keep"`` keeps them. The retrieval view always does.
        abbreviations: ``"expand"`` writes them out in both views; ambiguous ones stay as they are.
        placeholder: what stands in a view for a placeholder without a type.
    """

    what: ClassVar[str] = "report spec"
    parser: str = "en-1"
    retrieval_sections: tuple[str, ...] = ()
    retrieval_drop: tuple[str, ...] = ("identity", "communication", "comparison", "empty")
    generation_sections: tuple[str, ...] = ("findings", "impression", "addendum", "body")
    generation_drop: tuple[str, ...] = (
        "identity",
        "communication",
        "comparison",
        "empty",
        "prior",
        "recommendation",
        "technique",
        "history",
        "placeholder",
    )
    generation_priors: Literal["keep", "phrase"] = "phrase"
    abbreviations: Literal["keep", "expand"] = "keep"
    placeholder: str = "[redacted]"

    def reason(self, sentence: Sentence, view: View) -> str | None:
        """Say why ``view`` leaves a sentence out; None when it is kept."""
        retrieval = view == "retrieval"
        sections = self.retrieval_sections if retrieval else self.generation_sections
        if sections and sentence.section not in sections:
            return f"section {sentence.section}"
        if not sentence.tags:
            return None
        drop = self.retrieval_drop if retrieval else self.generation_drop
        return "+".join([tag for tag in sentence.tags if tag in drop]) or None

    def kept(self, report: Report, view: View) -> tuple[Sentence, ...]:
        """Return the sentences of ``view``; :meth:`reason` says why the others are out."""
        return tuple(s for s in report.sentences if self.reason(s, view) is None)

    def edits(self, report: Report, view: View) -> Iterator[tuple[Sentence, Sequence[Change]]]:
        """Yield each kept sentence with the spans inside it that ``view`` leaves out or shows otherwise.

        The spans are in order and do not overlap. Reasons: ``placeholder``, ``placeholder clause``,
        ``prior phrase``, ``abbreviation``, ``invisible character``.
        """
        marks, place = report.marks, 0
        for sentence in report.sentences:
            first = place
            while place < len(marks) and marks[place].start < sentence.end:
                place += 1
            if self.reason(sentence, view) is None:
                yield sentence, self._inside(report.text, sentence, marks[first:place], view)

    def render(self, report: Report, view: View) -> tuple[str, ...]:
        """Return the words of each kept sentence, with its :meth:`edits` made: NFC, nothing invisible.

        Examples:
            >>> spec, text = ReportSpec(), "A 4 mm nodule."
            >>> spec.render(Report(text, (), (Sentence(0, 14, "findings"),)), "retrieval")
            ('A 4 mm nodule.',)
        """
        return tuple(_shown(report.text, sentence, edits) for sentence, edits in self.edits(report, view))

    def _inside(self, text: str, sentence: Sentence, marks: Sequence[Change], view: View) -> Sequence[Change]:
        start, end = sentence.start, sentence.end
        words = text[start:end]
        plain = words.isascii() and words.isprintable()
        odd = not plain and not words.replace("\n", " ").isprintable()
        holds = "__" in words or "XXX" in words or "xxxx" in words or "[" in words
        if not (marks or odd or holds or self.abbreviations == "expand"):
            return ()
        phrases = view == "generation" and self.generation_priors == "phrase"
        found = [
            Change(mark.start, mark.end, mark.reason, mark.shown or self.placeholder)
            if mark.reason == "placeholder"
            else mark
            for mark in marks
            if phrases or mark.reason != "prior phrase"
        ]
        if holds:  # a report that was not parsed with these rules has no marks
            found += [
                Change(start + m.start(), start + m.end(), "placeholder", self.placeholder)
                for m in RAW_PLACEHOLDER.finditer(words)
            ]
        if self.abbreviations == "expand":
            found += [
                Change(start + first, start + last, "abbreviation", shown)
                for first, last, shown in expansions(words, language=self.parser.partition("-")[0])
            ]
        if odd:
            found += [
                Change(place, place + 1, "invisible character")
                for place in range(start, end)
                if not text[place].isspace() and unicodedata.category(text[place]) in INVISIBLE
            ]
        found = [c for c in found if c.shown != text[c.start : c.end]]
        return _opened(text, start, end, _apart(found))


def _apart(found: list[Change]) -> list[Change]:
    """Return the changes in order; of overlapping ones the first and longest stays."""
    found.sort(key=lambda change: (change.start, -change.end, not change.shown))
    apart: list[Change] = []
    for change in found:
        if not apart or change.start >= apart[-1].end:
            apart.append(change)
    return apart


def _opened(text: str, start: int, end: int, changes: list[Change]) -> list[Change]:
    """Give a sentence whose first words are left out a capital again, if it had one."""
    edge, reason = start, ""
    for change in changes:
        if change.shown or text[edge : change.start].strip():
            break
        edge, reason = change.end, change.reason
    while edge < end and text[edge].isspace():
        edge += 1
    free = edge < next((c.start for c in changes if c.start >= edge), end)
    had = _first_letter(text[start:end]).isupper()
    if had and free and reason in ("placeholder clause", "prior phrase"):
        capital = text[edge].upper()
        if capital != text[edge] and len(capital) == 1:
            changes.append(Change(edge, edge + 1, reason, capital))
            changes.sort(key=lambda change: change.start)
    return changes


def _first_letter(words: str) -> str:
    return next((char for char in words if char.isalnum()), "")


def _shown(text: str, sentence: Sentence, changes: Sequence[Change]) -> str:
    if not changes:
        return fold(text[sentence.start : sentence.end])
    pieces, edge = [], sentence.start
    for change in changes:
        pieces += [text[edge : change.start], change.shown]
        edge = change.end
    return fold("".join([*pieces, text[edge : sentence.end]]))
