"""Reports that are no table rows, as rows all the same: text files, HL7 messages, structured reports."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from medvl.errors import InputError, file_token
from medvl.preprocess.reports.parsing import MAX_CHARACTERS
from medvl.preprocess.sources.discovery import SourceFile
from medvl.preprocess.sources.hl7 import Hl7Report, read_messages, standing
from medvl.preprocess.sources.rows import Row, Unpaired
from medvl.preprocess.sources.structured import StructuredReport, read_structured

__all__ = ["REPORT_STEMS", "Gathered", "gather"]

REPORT_STEMS = frozenset(
    "report reports reporttext text findings impression note notes radiology_report conclusion caption "
    "befund bericht informe referto laudo rapor rapport".split()
)
"""Names of text files that say only what they are: such a file belongs to the folder that it lies in."""

_MAX_MESSAGES_BYTES = 2**28


@dataclass
class Gathered:
    """The rows of each origin, what could not become one, and what a user should know."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {"text": [], "hl7": [], "sr": []})
    unpaired: list[Unpaired] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, reason: str, path: Path, *, line: int = 0) -> None:
        """List a file, or a message in it, with its reason."""
        self.unpaired.append(Unpaired(reason, file_token(path), line, path))

    def add(self, row: Row) -> None:
        """Take a row, unless its text is longer than the parser takes."""
        if len(row.text) > MAX_CHARACTERS and row.path is not None:
            self.refuse("report_too_long", row.path, line=row.line)
        else:
            self.rows[row.origin].append(row)


def gather(files: Sequence[SourceFile], structured: Sequence[SourceFile]) -> Gathered:
    """Read all reports of a source that are not in tables.

    A text file is named after an accession number, a study or an image, or lies in the folder of its study.
    Of the HL7 messages of one order, and of structured reports that succeed each other, one stands.

    Args:
        files: text files and HL7 files; others are passed over.
        structured: DICOM objects that hold a report.
    """
    found = Gathered()
    for file in files:
        if file.kind == "text":
            _add_text(found, file)
    _add_messages(found, [file for file in files if file.kind == "hl7"])
    _add_structured(found, structured)
    count = sum(row.preliminary for rows in found.rows.values() for row in rows)
    if count:
        found.notes.append(f"{count} reports are preliminary: partial, not verified, or not final")
    return found


# --- text files ---------------------------------------------------------------------------------------------


def _add_text(found: Gathered, file: SourceFile) -> None:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(4 * MAX_CHARACTERS + 4)
    except OSError:
        return found.refuse("unreadable_file", file.path)
    text = _decoded(data)
    if text is None:
        return found.refuse("text_unreadable", file.path)
    relative = PurePosixPath(file.relative)
    folder = relative.parent.as_posix()
    generic = relative.stem.lower() in REPORT_STEMS
    return found.add(
        Row(
            0,
            {} if generic else {"study": relative.stem.strip()},
            text.replace("\r\n", "\n").strip(),
            images=()
            if generic
            else tuple(dict.fromkeys((relative.with_suffix("").as_posix(), relative.stem))),
            origin="text",
            path=file.path,
            folder="" if folder == "." else folder,
        )
    )


def _decoded(data: bytes) -> str | None:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not wide:
        return None
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


# --- HL7 ----------------------------------------------------------------------------------------------------


def _add_messages(found: Gathered, files: Sequence[SourceFile]) -> None:
    reports: list[Hl7Report] = []
    ignored: Counter[str] = Counter()
    for place, file in enumerate(files):
        try:
            with file.path.open("rb") as stream:
                data = stream.read(_MAX_MESSAGES_BYTES + 1)
        except OSError:
            found.refuse("unreadable_file", file.path)
            continue
        if len(data) > _MAX_MESSAGES_BYTES:
            found.refuse("report_too_long", file.path)
            continue
        messages = read_messages(data)
        if not messages:
            found.refuse("hl7_without_text", file.path)
        for message in messages:
            ignored.update(dict(message.ignored))
            if message.refusal:
                found.refuse(message.refusal, file.path, line=message.number)
            reports += [replace(report, file=place) for report in message.reports]
    stand = list(standing(reports))
    for report in stand:
        found.add(_message_row(report, files[report.file].path))
    if len(reports) > len(stand):
        found.notes.append(
            f"{len(reports)} HL7 reports give {len(stand)}: later versions, addenda and deletions count"
        )
    found.notes += [f"{reason}: {count}" for reason, count in sorted(ignored.items())]


def _message_row(report: Hl7Report, path: Path) -> Row:
    return Row(
        report.number,
        {
            "accession": report.accession,
            "study_uid": report.study_uid,
            "patient": report.patient,
            "date": report.date,
        },
        report.text,
        also={"accession": report.others},
        origin="hl7",
        path=path,
        preliminary=report.status == "preliminary",
        names=report.names,
        ids=report.ids,
    )


# --- structured reports -------------------------------------------------------------------------------------


def _add_structured(found: Gathered, files: Sequence[SourceFile]) -> None:
    reports: list[tuple[SourceFile, StructuredReport]] = []
    for file in files:
        try:
            reports.append((file, read_structured(file.path)))
        except InputError:
            found.refuse("sr_damaged", file.path)
    items = sum((Counter(report.left_out) for _, report in reports), Counter())
    if items:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(items.items()))
        found.notes.append(f"content items of structured reports that are not in the text: {counts}")
    replaced = {uid for _, report in reports for uid in report.replaces}
    for file, report in reports:
        if report.sop_uid in replaced:
            found.refuse("superseded_report", file.path)
        elif not report.text:
            found.refuse("sr_without_text", file.path)
        else:
            found.add(_structured_row(report, file.path))


def _structured_row(report: StructuredReport, path: Path) -> Row:
    return Row(
        0,
        {
            "accession": next(iter(report.accessions), ""),
            "study_uid": next(iter(report.study_uids), ""),
            "patient": report.patient,
            "date": report.date,
        },
        report.text,
        also={"accession": report.accessions[1:], "study_uid": report.study_uids[1:]},
        origin="sr",
        path=path,
        preliminary=report.status == "preliminary",
        names=report.names,
        ids=report.ids,
    )
