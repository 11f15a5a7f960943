"""One image with its report becomes one sample of a shard."""

from __future__ import annotations

from pathlib import Path

from medvl.images import Image, Photometric
from medvl.preprocess.deid.text import deidentify_text
from medvl.preprocess.plan import Job, Task
from medvl.preprocess.reading import kind_of, read_image
from medvl.preprocess.reading.burned import screen
from medvl.preprocess.reports import all_changes, hygiene_notes, mask_identity, parse_report
from medvl.preprocess.reports.findings import said
from medvl.preprocess.reports.languages import guess_language
from medvl.records import Box, LabelState, Record, Report
from medvl.specs import text_hash
from medvl.store import original_payload, pixel_hash
from medvl.store.shards import Sample

__all__ = ["OTHER_LANGUAGE", "make_sample"]

OTHER_LANGUAGE = "report: looks like language"
"""How the note begins that a report is in another language than its rules."""

_VOCABULARIES = ("cxr", "ct")
"""The modalities whose findings are read from the reports."""


def make_sample(task: Task, job: Job) -> Sample:
    """Read, clean and interpret one image and its report.

    The order is fixed: names and dates leave the text before it is parsed, so every span of the record
    indexes what the record holds; text leaves the picture after the pixel spec has shown it.

    Raises:
        InputError: the image cannot be read, or holds text and the policy is to drop it.
        BadReport: the report is too long.
        MissingDependency: the policy on text in pictures needs a package that is not there.
    """
    image = read_image(Path(job.path))
    stored, regions, share = screen(image, task.pixels.apply(image), spec=task.pixels, policy=task.burned_in)
    text = job.report
    redactions: dict[str, int] = {}
    if task.clean_text and text:
        text, redactions = deidentify_text(text, names=job.names, ids=job.ids, shift_days=job.shift_days)
    report = mask_identity(parse_report(text, parser=task.report.parser))
    states = _said(task, report)
    rows, columns = image.array.shape[-2:]
    scale = (stored.shape[0] / rows, stored.shape[1] / columns)
    record = Record(
        record_id=job.record_id,
        study_id=job.study_id,
        patient_id=job.patient_id,
        modality=task.modality,
        split=job.split,
        source_kind="dicom" if kind_of(Path(job.path)) == "dicom" else "raster",
        report=report.text,
        retrieval=task.report.render(report, "retrieval"),
        generation=task.report.render(report, "generation"),
        text_hash=text_hash(report.text),
        pixel_hash=pixel_hash(stored),
        pixel_digest=task.pixels.digest,
        report_digest=task.report.digest,
        shape=stored.shape,
        dtype=str(stored.dtype),
        source_shape=(rows, columns),
        view=job.view or image.view,
        laterality=job.laterality or image.laterality,
        spacing_mm=_stored_spacing(image, scale),
        spacing_frame=image.spacing_frame,
        inverted=image.photometric is Photometric.MONOCHROME1,
        sections=report.sections,
        sentences=report.sentences,
        changes=all_changes(report, task.report),
        redactions=redactions,
        labels=dict(states if task.label_text else job.labels),
        said=states,
        boxes=tuple(
            Box(b.label, b.x0 * scale[1], b.y0 * scale[0], b.x1 * scale[1], b.y1 * scale[0])
            for b in job.boxes
        ),
        text_regions=regions,
        text_fraction=share,
        notes=(*image.notes, *hygiene_notes(job.report), *_language_notes(text, task.report.parser)),
    )
    original = original_payload(Path(job.path), stored)
    return (record, stored) if original is None else (record, stored, *original)


def _said(task: Task, report: Report) -> dict[str, LabelState]:
    return said(report, vocabulary=task.modality) if task.modality in _VOCABULARIES else {}


def _language_notes(text: str, parser: str) -> tuple[str, ...]:
    language = guess_language(text)
    if language in ("", parser.partition("-")[0]):
        return ()
    return (f"{OTHER_LANGUAGE} '{language}', read by the rules {parser}",)


def _stored_spacing(image: Image, scale: tuple[float, float]) -> tuple[float, ...] | None:
    if image.spacing_mm is None:
        return None
    return tuple(spacing / factor for spacing, factor in zip(image.spacing_mm[-2:], scale, strict=True))
