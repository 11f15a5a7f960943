"""Report texts for a text encoder: cases with their sections, and other wordings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medvl.records import LabelState

__all__ = ["ReportCase", "Wording"]


@dataclass(frozen=True)
class ReportCase:
    """One report of a corpus.

    Attributes:
        case_id: names the report in tables; no identifying value.
        patient_id: pseudonym; all cases of a patient are in one split.
        split: ``train``, ``val`` or ``test``.
        sentences: everything that describes the case, in the order of the report.
        findings: those of the findings section; empty where the report has none.
        impression: those of the impression; empty where the report has none.
        labels: state of each labelled finding: of a human reader where the source has them, else what the
            report says.
    """

    case_id: str
    patient_id: str
    split: str
    sentences: tuple[str, ...]
    findings: tuple[str, ...] = ()
    impression: tuple[str, ...] = ()
    labels: Mapping[str, LabelState] = field(default_factory=dict)


@dataclass(frozen=True)
class Wording:
    """Other words for a case: the same facts (a variant), or one fact changed (a hard negative).

    Attributes:
        kind: which rule made it, such as ``paraphrase`` or ``negation``.
        sentences: its sentences.
    """

    kind: str
    sentences: tuple[str, ...]
