"""The contracts of text and of one paired record; plain values, no identifying field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "IS_PRESENT",
    "Box",
    "Change",
    "LabelState",
    "Record",
    "Report",
    "Section",
    "Sentence",
    "TextRegion",
]

LabelState = Literal["present", "absent", "uncertain", "unchanged"]
"""What is known of a finding: ``unchanged`` is present and said to be as before. One that is not listed is
unknown."""

IS_PRESENT: dict[str, bool] = {"present": True, "unchanged": True, "absent": False}
"""Whether a state says that the finding is there; "uncertain" and what is not listed say neither."""


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
    earlier study), ``placeholder`` (shows one in place of a word), ``recommendation``, ``communication``,
    ``technique``, ``history``, ``identity`` … Each tag that a view drops is the reason for the drop.
    """

    start: int
    end: int
    section: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """A span of the original text that a view does not show as it stands, and why.

    Attributes:
        start, end: of the span.
        reason: ``heading``, ``placeholder``, ``abbreviation``, the tags of a dropped sentence, …
        shown: what the view shows instead ("" for nothing).
        view: ``"retrieval"``, ``"generation"`` or ``"both"``.
    """

    start: int
    end: int
    reason: str
    shown: str = ""
    view: str = "both"


@dataclass(frozen=True)
class Report:
    """A report with its sections and sentences; every span indexes ``text`` as it was given.

    ``marks`` are spans inside sentences that a view may leave out or show otherwise, in order: placeholders
    with their type, clauses that say nothing but a placeholder, phrases that only compare with a prior study.
    """

    text: str
    sections: tuple[Section, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    marks: tuple[Change, ...] = ()

    def sentence_text(self, sentence: Sentence) -> str:
        """Return the words of one sentence, white space folded to single blanks."""
        return " ".join(self.text[sentence.start : sentence.end].split())


@dataclass(frozen=True)
class TextRegion:
    """Text that is burned into the picture, in pixels of the stored array; the words are not kept.

    Attributes:
        x0, y0, x1, y1: x right, y down, end exclusive.
        kind: ``"text"``, or ``"marker"`` for a letter that tells the side.
        score: of the detector, 0 to 1.
        masked: whether the stored pixels were painted over.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    kind: Literal["text", "marker"]
    score: float
    masked: bool


@dataclass(frozen=True)
class Box:
    """A finding's place in the stored array, end exclusive.

    On a film x runs right and y down, in pixels. In a volume x, y and z count voxels along its first, second
    and third axis (right, front, top); a film has no z.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    z0: float | None = None
    z1: float | None = None


@dataclass(frozen=True)
class Record:
    """One image or volume with its report, as the store's index holds it.

    Attributes:
        record_id, study_id, patient_id: keyed hashes; letters and digits only.
        modality: ``"cxr"``, ``"ct"`` or ``"pathology"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        view, laterality: as stated by header or table.
        spacing_mm: millimetres per pixel of the *stored* array along its axes (on a film rows first), or
            None.
        spacing_frame: ``"patient"``, ``"detector"`` or None.
        affine_ras: the stored voxel index to RAS+ millimetres, row by row of the 4 × 4 matrix; () on a film.
        source_kind: ``"dicom"``, ``"nifti"``, ``"raster"``, …
        inverted: whether the film was MONOCHROME1 and the spec inverted it.
        geometry: the verdict: ``"ok"``, ``"resampled"`` or ``"rejected:<reason>"``.
        source_shape: rows and columns of the source; of a volume its three axes as they were read.
        report: the text as it was given ("" when there is none).
        sections, sentences: spans of ``report``.
        retrieval: the sentences of the view that describes the case.
        generation: the sentences of the view that only says what the image can show.
        changes: every span of ``report`` that a view drops or alters, with the reason.
        redactions: how many names, identifiers and dates were taken out of the text before it was parsed, by
            kind; the words themselves are gone.
        rewritten: the sentences of a checked rewrite of the retrieval view; empty when there is none.
        labels: finding to state: of the label table, or where the source has none, what the report says.
        said: finding to state: what the report says.
        boxes: in pixels of the stored array.
        text_regions: text burned into the picture.
        text_fraction: share of the picture's area that it takes; None when nobody looked.
        pixel_hash, text_hash: of the stored pixels and of the normalised report ("" for none).
        pixel_digest, report_digest: digests of the specs that made this record.
        shard, offset, size, crc32: where the payload lies: shard file, first byte, bytes, checksum.
        payload: how the payload is coded: ``"npy.b2"`` for a packed array, ``"vol.b2"`` for a volume in
            chunks, ``"jpg"`` or ``"png"`` for the codestream of the source.
        parts_offset, parts_size, parts_crc32: where, in the same shard, the volume of anatomical parts lies,
            coded as ``"vol.b2"``: the number of each voxel's part, 0 for none; a size of 0 is no such volume.
        part_voxels: part to number of voxels in the stored array.
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
    affine_ras: tuple[float, ...] = ()
    inverted: bool = False
    geometry: str = "ok"
    sections: tuple[Section, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    changes: tuple[Change, ...] = ()
    redactions: dict[str, int] = field(default_factory=dict)
    rewritten: tuple[str, ...] = ()
    labels: dict[str, LabelState] = field(default_factory=dict)
    said: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    text_regions: tuple[TextRegion, ...] = ()
    text_fraction: float | None = None
    notes: tuple[str, ...] = ()
    payload: str = "npy.b2"
    shard: str = ""
    offset: int = 0
    size: int = 0
    crc32: int = 0
    parts_offset: int = 0
    parts_size: int = 0
    parts_crc32: int = 0
    part_voxels: dict[str, int] = field(default_factory=dict)
