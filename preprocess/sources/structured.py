"""The text of a DICOM structured report: headings, sentences, codes and measurements (PS3.3 C.17.3).

The content tree is walked here, without recursion: tools that know the templates refuse half of the
reports that hospitals send. Who observed, verified or acquired, and when, is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medvl.errors import InputError
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits
from medvl.preprocess.reading.part10 import opened, text, values

__all__ = ["REPORT_CLASSES", "StructuredReport", "read_structured"]

REPORT_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in ("11", "22", "33", "34", "35")
)
"""Basic Text, Enhanced, Comprehensive, Comprehensive 3D and Extensible SR Storage."""

_MAX_ITEMS = 20_000
_MAX_CHARACTERS = 200_000
_CONTEXT = ("HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD")
_PERSONAL = ("PNAME", "DATE", "TIME", "DATETIME", "UIDREF")
_SECTIONS = (
    *(
        "finding",
        "impression",
        "conclusion",
        "history",
        "indication",
        "recommendation",
        "addendum",
        "summary",
    ),
    *(
        "comparison",
        "technique",
        "procedure description",
        "request",
        "indications for procedure",
        "diagnosis",
    ),
    *("previous finding", "current procedure description", "patient presentation", "clinical information"),
)
_ENDS = (".", "!", "?", ":", ";")


@dataclass(frozen=True)
class StructuredReport:
    """What a structured report says, and of what.

    Attributes:
        study_uids: its own study, then those whose images it names as evidence.
        replaces: SOPInstanceUIDs of the reports that it succeeds.
        status: ``final``, or ``preliminary`` when it is partial or not verified.
        left_out: content items that are not in the text, by reason.
        names, ids: what must not survive in the text.
    """

    text: str
    sop_uid: str
    study_uids: tuple[str, ...]
    accessions: tuple[str, ...]
    patient: str
    date: str
    status: str
    replaces: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = field(default=(), repr=False)
    ids: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class _Place:
    """The container that an item lies in: its heading, and whether its items form running text."""

    heading: str
    running: bool


@dataclass(frozen=True)
class _Piece:
    """Words in the order of the document; ``short`` is how they stand inside a sentence."""

    place: _Place
    heading: str
    kind: str
    words: str
    short: str


def read_structured(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> StructuredReport:
    """Read the text of a structured report.

    A container's name becomes a heading on a line of its own, if text follows. Items of a ``CONTINUOUS``
    container form running text; elsewhere each begins a line, but a text that continues the sentence
    before it is joined, with the measurement between them. Inside running text ``___`` stands for a name or
    a date.

    Raises:
        InputError: the file cannot be read, is nested too deeply, or has too many items.
    """
    with opened(path, limits=limits, lenient=True) as part10:
        dataset = part10.dataset
        left_out: Counter[str] = Counter()
        pieces = list(_pieces(dataset, left_out))
        requests = values(dataset, "ReferencedRequestSequence")
        evidence = [
            *values(dataset, "CurrentRequestedProcedureEvidenceSequence"),
            *values(dataset, "PertinentOtherEvidenceSequence"),
        ]
        studies = [text(item, "StudyInstanceUID") for item in (dataset, *requests, *evidence[:64])]
        accessions = [text(item, "AccessionNumber") for item in (dataset, *requests)]
        verified = text(dataset, "VerificationFlag").upper() != "UNVERIFIED"
        complete = text(dataset, "CompletionFlag").upper() != "PARTIAL"
        names = tuple(sorted(set(_names(dataset))))
        ids = [text(dataset, "PatientID"), *accessions, text(dataset, "StudyID")]
        return StructuredReport(
            text=_joined(pieces),
            sop_uid=text(dataset, "SOPInstanceUID"),
            study_uids=_distinct(studies),
            accessions=_distinct(accessions),
            patient=text(dataset, "PatientID"),
            date=text(dataset, "StudyDate"),
            status="final" if verified and complete else "preliminary",
            replaces=_distinct(_replaced(dataset)),
            left_out=dict(sorted(left_out.items())),
            names=names,
            ids=_distinct(ids),
        )


def _distinct(found: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in found if value))


# --- the tree -----------------------------------------------------------------------------------------------


def _pieces(dataset: Dataset, left_out: Counter[str]) -> Iterator[_Piece]:
    """Yield the words in document order; the root's name is the title of the document and is left out."""
    root = _Place("", _runs(dataset))
    stack = [(item, root) for item in reversed(values(dataset, "ContentSequence"))]
    for _ in range(_MAX_ITEMS):
        if not stack:
            return
        item, place = stack.pop()
        relation, kind = text(item, "RelationshipType").upper(), text(item, "ValueType").upper()
        if relation in _CONTEXT or not kind:
            left_out["context" if kind else "reference"] += 1
            continue
        if kind == "CONTAINER":
            place = _Place(_meaning(item, "ConceptNameCodeSequence") or place.heading, _runs(item))
        elif piece := _piece(item, kind, place):
            yield piece
        else:
            left_out["person or time" if kind in _PERSONAL else "without words"] += 1
        stack += [(child, place) for child in reversed(values(item, "ContentSequence"))]
    raise InputError(f"the structured report has more than {_MAX_ITEMS:,} content items.")


def _runs(container: Dataset) -> bool:
    return text(container, "ContinuityOfContent").upper() == "CONTINUOUS"


def _piece(item: Dataset, kind: str, place: _Place) -> _Piece | None:
    concept = _meaning(item, "ConceptNameCodeSequence")
    own = concept if _is_section(concept) and not _is_section(place.heading) else ""
    if kind in _PERSONAL:
        return _Piece(place, place.heading, "gap", "___", "___") if place.running else None
    if kind == "TEXT":
        words = text(item, "TextValue").replace("\r\n", "\n").replace("\r", "\n").strip()
    else:
        words = {"CODE": _meaning(item, "ConceptCodeSequence"), "NUM": _measured(item)}.get(kind, "")
    if not words:
        return None
    alone = f"{concept}: {words}" if kind != "TEXT" and concept and not own else words
    return _Piece(place, own or place.heading, kind, alone, words)


def _is_section(concept: str) -> bool:
    word = concept.casefold().strip(": ")
    return word in _SECTIONS or word.removesuffix("s") in _SECTIONS


def _meaning(item: Dataset, keyword: str) -> str:
    codes = values(item, keyword)
    return " ".join(text(codes[0], "CodeMeaning").split()) if codes else ""


def _measured(item: Dataset) -> str:
    measured = values(item, "MeasuredValueSequence")
    if not measured:
        return ""
    number = text(measured[0], "NumericValue")
    units = values(measured[0], "MeasurementUnitsCodeSequence")
    unit = text(units[0], "CodeValue") if units else ""
    return f"{number} {unit}" if number and unit not in ("", "1") and unit[:1] != "{" else number


# --- the text -----------------------------------------------------------------------------------------------


def _joined(pieces: Sequence[_Piece]) -> str:
    lines: list[str] = []
    heading = ""
    for before, piece, after in zip((None, *pieces), pieces, (*pieces[1:], None), strict=False):
        if piece.heading.casefold() != heading.casefold() and piece.heading:
            heading = piece.heading
            lines.append(f"{heading.strip(': ').upper()}:")
        elif before is not None and before.place is piece.place and _continues(lines[-1], piece, after):
            glue = "" if piece.short[:1] in (".", ",", ";", ":", ")") else " "
            lines[-1] += glue + piece.short
            continue
        lines.append(piece.short if piece.place.running else piece.words)
    return "\n".join(lines)[: _MAX_CHARACTERS + 1]


def _continues(line: str, piece: _Piece, after: _Piece | None) -> bool:
    """Whether a piece belongs to the line before it: running text, or a sentence that is not at its end."""
    if piece.place.running:
        return True
    if line.rstrip().endswith(_ENDS):
        return False
    follows = after is not None and after.place is piece.place and after.kind == "TEXT"
    sentence = piece if piece.kind == "TEXT" else after if follows else None
    return sentence is not None and sentence.words[:1].islower()


# --- identity -----------------------------------------------------------------------------------------------


def _replaced(dataset: Dataset) -> list[str]:
    return [
        text(reference, "ReferencedSOPInstanceUID")
        for document in values(dataset, "PredecessorDocumentsSequence")
        for series in values(document, "ReferencedSeriesSequence")
        for reference in values(series, "ReferencedSOPSequence")
    ]


def _names(dataset: Dataset) -> Iterator[str]:
    """Yield every person name of the report, at any depth; ``opened`` has capped the depth."""
    stack = [dataset]
    while stack:
        for element in stack.pop():
            if element.VR == "SQ":
                stack.extend(element.value)
            elif element.VR == "PN" and not BaseTag(element.tag).is_private:
                several = element.value if element.VM > 1 else [element.value]
                yield from (str(name) for name in several if name)
