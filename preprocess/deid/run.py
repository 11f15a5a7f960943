"""A folder of studies and reports becomes a folder of clean ones, with an audit of what is left."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from medvl.errors import InputError, UsageError, file_token, nearest
from medvl.notice import NOTICE
from medvl.preprocess.deid.audit import AuditReport, audit
from medvl.preprocess.deid.carriers import gather
from medvl.preprocess.deid.facts import Facts, read_facts
from medvl.preprocess.deid.files import FileTask, clean_files
from medvl.preprocess.deid.header import Actions
from medvl.preprocess.deid.isolation import in_processes
from medvl.preprocess.deid.page import audit_page
from medvl.preprocess.deid.people import People
from medvl.preprocess.deid.pixels import Policy
from medvl.preprocess.deid.profile import DEFAULT, EDITION, Profile
from medvl.preprocess.deid.tables import clean_table, clean_text_file
from medvl.preprocess.lock import hold
from medvl.preprocess.pseudonyms import Pseudonyms, keep_key, write_secret_table
from medvl.preprocess.sources.discovery import SourceFile, discover
from medvl.progress import Progress
from medvl.store import file_sha256, write_atomic

__all__ = ["DeidSummary", "deidentify"]


_FEW = 32
_OURS = {"dicom", "tables", "text", "private", "audit.json", "audit.html"}
_PLAIN_NAMES = frozenset({"boxes", "images", "labels", "metadata", "report", "reports", "studies"})
"""Names of tables that name nobody; they stay, since what comes next looks for them."""
_LEFT_OUT = {
    "other": "not an image, a table or a text",
    "outside": "a link that leads out of the source",
    "dicomdir": "a DICOMDIR, whose file names lead nowhere any more",
}


@dataclass
class DeidSummary:
    """What a run of :func:`deidentify` did.

    Attributes:
        out: the folder of the clean files.
        patients: how many there are.
        dicom, tables, texts: clean files written.
        table_rows, rows_left_out: rows written, and rows whose patient nobody could tell.
        refused: rule to how many files were not copied because they broke it.
        refusals: rule and file token of each.
        left_out: reason to how many files were not copied because they are none of these kinds.
        looked, with_text, masked: DICOM files whose pixels were searched, held text, were painted over.
        actions: what was done to which attribute, and words replaced by kind.
        audit: what the originals said that is still there.
    """

    out: Path
    patients: int = 0
    dicom: int = 0
    tables: int = 0
    texts: int = 0
    table_rows: int = 0
    rows_left_out: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    looked: int = 0
    with_text: int = 0
    masked: int = 0
    actions: Actions = field(default_factory=Actions)
    audit: AuditReport = field(default_factory=AuditReport)

    @property
    def complete(self) -> bool:
        """Whether every file was cleaned and the audit found nothing."""
        return not self.refused and not self.rows_left_out and self.audit.clean

    def refuse(self, rule: str, path: Path) -> None:
        """Count a file that is not copied."""
        self.refused[rule] += 1
        self.refusals.append((rule, file_token(path)))

    def to_json(self) -> dict[str, object]:
        """Return the summary as plain values; it names no patient and no source file."""
        return {
            "notice": NOTICE,
            "profile": EDITION,
            "complete": self.complete,
            "patients": self.patients,
            "dicom": self.dicom,
            "tables": self.tables,
            "texts": self.texts,
            "table_rows": self.table_rows,
            "rows_left_out": self.rows_left_out,
            "refused": dict(self.refused),
            "refusals": [{"rule": rule, "file": token} for rule, token in self.refusals],
            "left_out": dict(self.left_out),
            "pixels": {"searched": self.looked, "with_text": self.with_text, "masked": self.masked},
            "actions": {name: dict(counts) for name, counts in sorted(self.actions.taken.items())},
            "words": dict(self.actions.words),
            "audit": self.audit.to_json(),
        }

    def lines(self) -> list[str]:
        """Return what to show at the end of a run."""
        lines = [
            f"{self.dicom:,} DICOM files, {self.tables:,} tables and {self.texts:,} texts of "
            f"{self.patients:,} patients cleaned"
        ]
        if self.looked:
            lines.append(
                f"burned-in text: {self.looked:,} pictures searched, {self.with_text:,} with text, "
                f"{self.masked:,} painted over"
            )
        lines += [f"refused, not copied: {count:,} × {rule}" for rule, count in sorted(self.refused.items())]
        lines += [f"left out: {count:,} × {reason}" for reason, count in sorted(self.left_out.items())]
        if self.rows_left_out:
            lines.append(f"left out: {self.rows_left_out:,} rows of tables whose patient nobody can tell")
        return lines + self.audit.lines()


def deidentify(
    source: str | Path,
    out: str | Path,
    *,
    key: bytes | None = None,
    pixels: str = "mask",
    profile: Profile = DEFAULT,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DeidSummary:
    """Write clean copies of the DICOM files, report tables and report texts of a folder.

    One key joins all of them: a patient has one pseudonym and one number of days by which every date
    moves, in headers, tables and texts. Files are named by hashes alone. What cannot be read or
    cleaned is listed and never copied. A killed run goes on where it stopped. It helps to remove what
    identifies people; it does not guarantee it.

    Args:
        source: the originals; nothing is written there.
        out: the clean files: ``dicom/PATIENT/STUDY/FILE.dcm``, ``tables``, ``text``, ``audit.json``,
            ``audit.html``, and ``private`` with the key and the way back, which is never to be shared.
        key: of the pseudonyms; made, or taken from ``private/key``, if None.
        pixels: ``"mask"`` paints burned-in text over, ``"drop"`` refuses pictures that hold any, ``"keep"``
            only says so in the header, ``"off"`` does not look.
        profile: the table with the options that are on.
        workers: processes; all cores if None. With 1 everything runs in this process.
        progress: called with files done, files in all, and the step.

    Raises:
        UsageError: a folder, a policy or the key does not fit.
        StoreError: the output cannot be written.
    """
    source, out = Path(source), Path(out)
    _check(source, out, pixels=pixels, workers=workers)
    workers = workers or len(os.sched_getaffinity(0))
    progress = progress or (lambda done, total, message: None)
    private = out / "private"
    (private / "files").mkdir(parents=True, exist_ok=True)
    private.chmod(0o700)
    with hold(private / "lock"):
        ids = Pseudonyms(keep_key(private, given=key))
        _keep_options(private, {"pixels": pixels, "options": sorted(profile.options), "edition": EDITION})
        summary = DeidSummary(out)
        files = discover(source)
        found = dict(_facts(files, workers=workers, progress=progress))
        facts = {file: found[file] for file in files if file in found}  # in the order of the source
        people = People()
        places = _plan(files, facts, ids=ids, people=people, summary=summary)
        tables = _tables(files, ids=ids, people=people, summary=summary)
        policy = cast(Policy, pixels)
        tasks = [
            _task(file, facts[file], target, out, ids, people, profile, policy) for file, target in places
        ]
        for done, (at, outcome) in enumerate(clean_files(tasks, workers=workers), 1):
            if outcome.refused:
                summary.refuse(outcome.refused, tasks[at].path)
            else:
                summary.dicom += 1
                summary.actions.update(outcome.actions)
                summary.looked += outcome.looked
                summary.with_text += outcome.text_regions > 0
                summary.masked += outcome.masked
            progress(done, len(tasks), "cleaning")
        _write_all(out / "tables", tables)
        _write_all(out / "text", _texts(files, ids=ids, people=people, summary=summary))
        summary.patients = len(people.names)
        _write_mapping(private, ids, people, places)
        progress(0, 1, "audit")
        known = ((file.relative, fact) for file, fact in facts.items())
        carriers = gather(source, [file.relative for file in files], known, ids=ids)
        for name in ("audit.json", "audit.html"):  # of an earlier run: they hold counts, and are made anew
            (out / name).unlink(missing_ok=True)
        summary.audit = audit(carriers, out)
        write_atomic(out / "audit.json", (json.dumps(summary.to_json(), indent=1) + "\n").encode())
        write_atomic(out / "audit.html", audit_page(summary.to_json()).encode())
        progress(1, 1, "audit")
    return summary


def _check(source: Path, out: Path, *, pixels: str, workers: int | None) -> None:
    if pixels not in get_args(Policy):
        raise UsageError(
            f"'{pixels}' is no policy for burned-in text.", hint=nearest(pixels, get_args(Policy))
        )
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; allowed are whole numbers from 1.")
    if not source.is_dir():
        raise UsageError("the source is not a folder.", hint="Give the folder that holds the studies.")
    a, b = source.resolve(), out.resolve()
    if a == b or a.is_relative_to(b) or b.is_relative_to(a):
        raise UsageError(
            "source and output lie inside one another.", hint="Choose an output folder outside the source."
        )
    strangers = {path.name for path in out.iterdir()} - _OURS if out.is_dir() else set()
    if strangers:
        raise UsageError(
            f"the output folder holds {len(strangers)} files or folders that are not of such a run.",
            hint="Choose an empty folder, or the one that a run was begun in.",
        )


def _keep_options(private: Path, options: dict[str, object]) -> None:
    path, wanted = private / "options.json", json.dumps(options, sort_keys=True)
    if path.is_file() and path.read_text("utf-8") != wanted:
        raise UsageError(
            "the output folder was begun with another profile or another policy for burned-in text.",
            hint="Repeat the options of the first run, or choose another output folder.",
        )
    write_atomic(path, wanted.encode())


def _facts(
    files: Sequence[SourceFile], *, workers: int, progress: Progress
) -> Iterator[tuple[SourceFile, Facts | None]]:
    dicom = [file for file in files if file.kind == "dicom"]
    paths = [file.path for file in dicom]
    few = len(dicom) < _FEW  # to start processes costs more than they save
    found = in_processes(read_facts, paths, workers=1 if few else workers, crashed=None)
    for done, (place, fact) in enumerate(found, 1):
        yield dicom[place], fact
        progress(done, len(dicom), "headers")


def _plan(
    files: Sequence[SourceFile],
    facts: dict[SourceFile, Facts | None],
    *,
    ids: Pseudonyms,
    people: People,
    summary: DeidSummary,
) -> list[tuple[SourceFile, str]]:
    """Say where each DICOM file goes, and count what is not copied."""
    by_target: dict[str, list[SourceFile]] = {}
    for file in files:
        fact = facts.get(file)
        if fact is not None:
            target = _target(file, fact, ids)
            by_target.setdefault(target, []).append(file)
            people.add_file(file.relative, fact, target)
        elif file.kind != "table" and not _is_text(file):
            _leave(file, summary)
    places = []
    for target, group in by_target.items():
        if len(group) > 1 and len({file_sha256(file.path) for file in group}) > 1:
            for file in group:  # two pictures claim one SOPInstanceUID: nobody can say which is which
                summary.refuse("SameUidDifferentContent", file.path)
            continue
        if len(group) > 1:
            summary.left_out["a copy of another file"] += len(group) - 1
        places.append((group[0], target))
    return places


def _is_text(file: SourceFile) -> bool:
    return file.kind in ("text", "other") and file.path.suffix.lower() == ".txt"


def _leave(file: SourceFile, summary: DeidSummary) -> None:
    if file.kind in _LEFT_OUT:
        summary.left_out[_LEFT_OUT[file.kind]] += 1
    elif file.kind in ("dicom", "damaged", "unreadable"):
        summary.refuse("InputError", file.path)
    else:  # pictures without a header, archives …: they may say anything
        summary.refuse("KindNotCleaned", file.path)


def _target(file: SourceFile, fact: Facts, ids: Pseudonyms) -> str:
    study = ids.study(fact.study_uid or fact.patient)
    return f"dicom/{ids.patient(fact.patient)}/{study}/{ids.record(fact.sop_uid or file.relative)}.dcm"


def _task(
    file: SourceFile,
    fact: Facts | None,
    target: str,
    out: Path,
    ids: Pseudonyms,
    people: People,
    profile: Profile,
    pixels: Policy,
) -> FileTask:
    patient = fact.patient if fact else ""
    return FileTask(
        path=file.path,
        target=out / target,
        note=out / "private" / "files" / f"{Path(target).stem}.json",
        key=ids.key,
        patient=patient,
        names=tuple(people.names[patient]),
        numbers=tuple(people.numbers[patient]),
        profile=profile,
        pixels=pixels,
    )


def _tables(
    files: Sequence[SourceFile], *, ids: Pseudonyms, people: People, summary: DeidSummary
) -> dict[str, bytes]:
    """Clean the tables, before the images: their columns know names that headers do not."""
    clean: dict[str, bytes] = {}
    for file in files:
        if file.kind != "table":
            continue
        try:
            table = clean_table(file.path, ids=ids, people=people)
        except InputError as error:
            summary.refuse(error.rule, file.path)
            continue
        suffix, stem = table.suffix, file.path.stem.lower()
        plain = stem in _PLAIN_NAMES and f"{stem}{suffix}" not in clean
        clean[f"{stem if plain else ids.record(file.relative)}{suffix}"] = table.data
        summary.tables += 1
        summary.table_rows += table.rows
        summary.rows_left_out += table.rows_left_out
        summary.actions.words.update(table.words)
    return clean


def _texts(
    files: Sequence[SourceFile], *, ids: Pseudonyms, people: People, summary: DeidSummary
) -> dict[str, bytes]:
    clean: dict[str, bytes] = {}
    for file in files:
        if not _is_text(file):
            continue
        patient = people.of_path(file.relative)
        if patient is None:
            summary.refuse("NoPatient", file.path)
            continue
        try:
            text = clean_text_file(file.path, ids=ids, people=people, patient=patient)
        except InputError as error:
            summary.refuse(error.rule, file.path)
            continue
        clean[f"{ids.patient(patient)}-{ids.record(file.relative)}.txt"] = text.data
        summary.texts += 1
        summary.actions.words.update(text.words)
    return clean


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        folder.mkdir(exist_ok=True)
        write_atomic(folder / name, data)


def _write_mapping(
    private: Path, ids: Pseudonyms, people: People, places: Sequence[tuple[SourceFile, str]]
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("kind", "original", "clean", "days"))
    for patient in sorted(people.names):
        writer.writerow(("patient", patient, ids.patient(patient), ids.shift_days(patient)))
    writer.writerows(("file", file.relative, target, "") for file, target in places)
    write_secret_table(private / "mapping.csv", stream.getvalue())
