"""The contracts of text and of one paired record; plain values, no identifying field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Box", "LabelState", "Record", "Report", "Section", "Sentence"]

LabelState = Literal["present", "absent", "uncertain"]
"""What is known of a finding; a finding that is not listed is unknown."""


@dataclass(frozen=True)
class Section:
    """A named part of a report; ``text[start:end]`` is its body without the heading."""

    name: str
    """Lower case: ``findings``, ``impression``, ``indication``, ``comparison``, ``technique``, ``history``, …
    or ``body`` where there is no heading."""
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """One sentence as a span of the original text.

    ``tags`` say what it is besides a description of the image: ``prior`` (compares with an
    earlier study), ``placeholder`` (holds ``___`` or ``XXXX``), ``recommendation``, ``communication``,
    ``technique``, ``history``, ``identity`` … Each tag that a view drops is the reason for the drop.
    """

    start: int
    end: int
    section: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A report with its sections and sentences; every span indexes ``text`` as it was given."""

    text: str
    sections: tuple[Section, ...] = ()
    sentences: tuple[Sentence, ...] = ()

    def sentence_text(self, sentence: Sentence) -> str:
        """Return the words of one sentence, white space folded to single blanks."""
        return " ".join(self.text[sentence.start : sentence.end].split())


@dataclass(frozen=True)
class Box:
    """A finding's place, in pixels of the stored array: x right, y down, end exclusive."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Record:
    """One image with its report, as the store's index holds it.

    Attributes:
        record_id, study_id, patient_id: keyed hashes; letters and digits only.
        modality: ``"cxr"``, ``"ct"`` or ``"pathology"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        view, laterality: as stated by header or table.
        spacing_mm: millimetres per pixel of the *stored* array, rows first, or None.
        spacing_frame: ``"patient"``, ``"detector"`` or None.
        source_kind: ``"dicom"``, ``"raster"``, …
        inverted: whether the film was MONOCHROME1 and the spec inverted it.
        geometry: the verdict: ``"ok"``, ``"resampled"`` or ``"rejected:<reason>"``.
        source_shape: rows and columns of the source.
        report: the text as it was given ("" when there is none).
        sections, sentences: spans of ``report``.
        retrieval: the sentences of the view that describes the case.
        generation: the sentences of the view that only says what the image can show.
        labels: finding to state.
        boxes: in pixels of the stored array.
        pixel_hash, text_hash: of the stored pixels and of the normalised report ("" for none).
        pixel_digest, report_digest: digests of the specs that made this record.
        shard, offset, size, crc32: where the payload lies: shard file, first byte, bytes, checksum.
        shape, dtype: of the stored array.
        notes: repairs that the reader made.
    """

    record_id: str
    study_id: str
    patient_id: str
    modality: str
    split: str
    source_kind: str
    report: str
    retrieval: tuple[str, ...]
    generation: tuple[str, ...]
    text_hash: str
    pixel_hash: str
    pixel_digest: str
    report_digest: str
    shape: tuple[int, ...]
    dtype: str
    source_shape: tuple[int, ...]
    view: str | None = None
    laterality: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    spacing_frame: str | None = None
    inverted: bool = False
    geometry: str = "ok"
    sections: tuple[Section, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    labels: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    notes: tuple[str, ...] = ()
    shard: str = ""
    offset: int = 0
    size: int = 0
    crc32: int = 0
