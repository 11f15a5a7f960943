"""How a parsed report becomes the two text views of a record."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from medvl.records import Report, Sentence
from medvl.specs.base import Spec, fold

__all__ = ["PLACEHOLDER", "ReportSpec"]

PLACEHOLDER = re.compile(r"_{2,}|(?<![A-Za-z])X{3,}(?![A-Za-z])|\[\*\*[^\]\n]{0,60}\*\*\]")
"""What de-identified reports hold in place of a word: ``___`` (MIMIC), ``XXXX`` (IU X-ray), ``[**…**]``."""


class ReportSpec(Spec):
    """Which sentences of a parsed report each text view keeps.

    Args:
        parser: name and version of the rules that found the sections, sentences and tags.
        retrieval_drop, generation_drop: sentences with any of these tags are left out of the view.
        retrieval_sections, generation_sections: sections that the view reads, in the order of the
            text; empty means all of them.
        placeholder: what stands in a view for ``___``, ``XXXX`` and the like.
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
    placeholder: str = "[redacted]"

    def reason(self, sentence: Sentence, view: Literal["retrieval", "generation"]) -> str | None:
        """Say why ``view`` leaves a sentence out; None when it is kept."""
        sections = self.retrieval_sections if view == "retrieval" else self.generation_sections
        drop = self.retrieval_drop if view == "retrieval" else self.generation_drop
        if sections and sentence.section not in sections:
            return f"section {sentence.section}"
        return "+".join(tag for tag in sentence.tags if tag in drop) or None

    def kept(self, report: Report, view: Literal["retrieval", "generation"]) -> tuple[Sentence, ...]:
        """Return the sentences of ``view``; :meth:`reason` says why the others are out."""
        return tuple(s for s in report.sentences if self.reason(s, view) is None)

    def render(self, report: Report, view: Literal["retrieval", "generation"]) -> tuple[str, ...]:
        """Return the words of each kept sentence: NFC, nothing invisible, placeholders made uniform."""
        shown = (fold(report.text[s.start : s.end]) for s in self.kept(report, view))
        return tuple(PLACEHOLDER.sub(lambda _: self.placeholder, words) for words in shown)
