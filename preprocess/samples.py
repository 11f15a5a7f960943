"""One image with its report becomes one sample of a shard."""

from __future__ import annotations

from pathlib import Path

from medvl.preprocess.deid.text import deidentify_text
from medvl.preprocess.pictures import show_film, show_volume
from medvl.preprocess.plan import Job, Task
from medvl.preprocess.reports import all_changes, hygiene_notes, mask_identity, parse_report
from medvl.preprocess.reports.findings import said
from medvl.preprocess.reports.languages import guess_language
from medvl.records import LabelState, Record, Report
from medvl.specs import VolumeSpec, text_hash
from medvl.store import original_payload, pixel_hash
from medvl.store.shards import Sample

__all__ = ["OTHER_LANGUAGE", "make_sample"]

OTHER_LANGUAGE = "report: looks like language"
"""How the note begins that a report is in another language than its rules."""

_VOCABULARIES = ("cxr", "ct")
"""The modalities whose findings are read from the reports."""


def make_sample(task: Task, job: Job) -> Sample:
    """Read, clean and interpret one image or volume and its report.

    The order is fixed: names and dates leave the text before it is parsed, so every span of the record
    indexes what the record holds; text leaves the picture after the pixel spec has shown it.

    Raises:
        InputError: the image cannot be read, is no regular volume, or holds text that the policy forbids.
        BadReport: the report is too long.
        MissingDependency: the policy on text in pictures needs a package that is not there.
    """
    if isinstance(task.pixels, VolumeSpec):
        shown = show_volume(job, task.pixels, allow_gaps=task.allow_gaps, on_irregular=task.on_irregular)
    else:
        shown = show_film(job, task.pixels, burned_in=task.burned_in)
    text = job.report
    redactions: dict[str, int] = {}
    if task.clean_text and text:
        text, redactions = deidentify_text(text, names=job.names, ids=job.ids, shift_days=job.shift_days)
    report = mask_identity(parse_report(text, parser=task.report.parser))
    states = _said(task, report)
    about = shown.about
    record = Record(
        record_id=job.record_id,
        study_id=job.study_id,
        patient_id=job.patient_id,
        modality=task.modality,
        split=job.split,
        report=report.text,
        retrieval=task.report.render(report, "retrieval"),
        generation=task.report.render(report, "generation"),
        text_hash=text_hash(report.text),
        pixel_hash=pixel_hash(shown.stored),
        pixel_digest=task.pixels.digest,
        report_digest=task.report.digest,
        shape=shown.stored.shape,
        dtype=str(shown.stored.dtype),
        sections=report.sections,
        sentences=report.sentences,
        changes=all_changes(report, task.report),
        redactions=redactions,
        labels=dict(states if task.label_text else job.labels),
        said=states,
        **about
        | {
            "notes": (
                *about["notes"],
                *hygiene_notes(job.report),
                *_language_notes(text, task.report.parser),
            )
        },
    )
    if shown.volume:
        return record, shown.stored, shown.parts
    original = original_payload(Path(job.path), shown.stored)
    return (record, shown.stored) if original is None else (record, shown.stored, *original)


def _said(task: Task, report: Report) -> dict[str, LabelState]:
    return said(report, vocabulary=task.modality) if task.modality in _VOCABULARIES else {}


def _language_notes(text: str, parser: str) -> tuple[str, ...]:
    language = guess_language(text)
    if language in ("", parser.partition("-")[0]):
        return ()
    return (f"{OTHER_LANGUAGE} '{language}', read by the rules {parser}",)
