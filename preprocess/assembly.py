"""The files that describe a whole store: index, failures, quality page; the manifest comes last."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvl.errors import BurnedInText, IrregularSeries
from medvl.notice import NOTICE
from medvl.preprocess.checks import Check, check_records
from medvl.preprocess.chunks import Failure, Part
from medvl.preprocess.plan import Job, Task
from medvl.preprocess.pseudonyms import write_sources, write_unpaired
from medvl.preprocess.quality import render_quality
from medvl.preprocess.samples import OTHER_LANGUAGE
from medvl.preprocess.sources.items import relative_name
from medvl.preprocess.sources.pairing import Pairing, Unpaired
from medvl.preprocess.sources.reasons import HINTS
from medvl.records import Record
from medvl.splits import SPLITS
from medvl.store import FORMAT, index_bytes, index_digest, write_atomic

__all__ = ["PrepareSummary", "Prepared", "assemble"]


EXPECTED = frozenset(
    {
        BurnedInText.__name__,
        *(f"{IrregularSeries.__name__}:{reason}" for reason in ("localizer", "derived")),
    }
)
"""Rules under which nothing is lost: films with text that the call asks to leave out, and what every CT study
holds besides its volumes."""
REFUSED = frozenset(
    {
        "ambiguous_file_name",
        "ambiguous_patient_date",
        "conflicting_reports",
        "one_study_of_two_patients",
        "path_contradicts_table",
        "same_uid_different_pixels",
    }
)
"""Reasons to leave an image out that somebody must look at."""


@dataclass(frozen=True)
class PrepareSummary:
    """What a run of :func:`prepare` left behind.

    Attributes:
        store: the folder.
        files: images that were found.
        records: images that became records.
        failed: images that could not be read, listed in ``failures.jsonl``.
        failures: rule to number of images.
        unpaired: reason to number of images or table rows that have no counterpart.
        columns: role to the column that was taken for it.
        notes: what the pairing wants to be known.
        splits: split to number of records.
        checks: leaks, duplicates, conflicts.
        redactions: kind of name, identifier or date to how many left the reports.
        resumed: images that an earlier, interrupted run had done already.
    """

    store: Path
    files: int
    records: int
    studies: int
    patients: int
    failed: int
    failures: dict[str, int]
    unpaired: dict[str, int]
    columns: dict[str, str]
    notes: tuple[str, ...]
    splits: dict[str, int]
    checks: tuple[Check, ...]
    redactions: dict[str, int]
    resumed: int = 0

    @property
    def complete(self) -> bool:
        """Whether every image that should have become a record did: none failed, none was refused."""
        wrong = set(self.failures) - EXPECTED
        return bool(self.records) and not wrong and not REFUSED.intersection(self.unpaired)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store)}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = ", ".join(f"{self.splits.get(name, 0)} {name}" for name in SPLITS)
        lines = [
            f"{self.records} records of {self.studies} studies and {self.patients} patients ({counts})",
            "columns: " + (", ".join(f"{role} = {name}" for role, name in self.columns.items()) or "none"),
        ]
        if self.resumed:
            lines.append(f"{self.resumed} of {self.files} images were done already")
        lines += [
            f"without a pair: {count} × {reason}: {HINTS.get(reason, 'see private/unpaired.csv.')}"
            for reason, count in sorted(self.unpaired.items())
        ]
        if self.redactions:
            counts = ", ".join(f"{count} × {kind}" for kind, count in self.redactions.items())
            lines.append(f"taken out of the reports: {counts}")
        lines += [f"note: {note}" for note in self.notes]
        empty = [name for name in SPLITS if not self.splits.get(name)]
        if empty and self.records:
            lines.append(
                f"note: no record in {' and '.join(empty)}; prepare more patients, or other shares, "
                "for example --split .6 .2 .2"
            )
        lines += [f"failed: {count} × {rule}" for rule, count in sorted(self.failures.items())]
        lines += [
            f"{check.level}: {check.count} {check.says}" for check in self.checks if check.level != "ok"
        ]
        if self.unpaired:
            lines.append(f"each file and row by its name: {self.store / 'private' / 'unpaired.csv'}")
        return [*lines, f"look at {self.store / 'quality.html'}", NOTICE]


@dataclass(frozen=True)
class Prepared:
    """All parts of a run together.

    Attributes:
        task: what the chunks shared.
        jobs: the whole plan.
        records, failures: what became of the jobs, both ordered by record id.
        kinds: file format or transfer syntax to number of files.
        unpaired: reason to number of images or table rows without a counterpart.
        columns: role to the column that was taken for it.
        notes: what the pairing wants to be known.
        options: the options that the plan was made with.
    """

    task: Task
    jobs: tuple[Job, ...]
    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    kinds: dict[str, int]
    unpaired: dict[str, int]
    unpaired_entries: tuple[Unpaired, ...]
    columns: dict[str, str]
    notes: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        task: Task,
        jobs: Sequence[Job],
        parts: Sequence[Part],
        *,
        paired: Pairing,
        options: Mapping[str, Any],
    ) -> Prepared:
        """Join the parts of all chunks."""
        return cls(
            task=task,
            jobs=tuple(jobs),
            records=tuple(sorted((r for p in parts for r in p.records), key=lambda record: record.record_id)),
            failures=tuple(sorted((f for p in parts for f in p.failures), key=lambda failure: failure.item)),
            kinds=dict(sum((Counter(part.kinds) for part in parts), Counter())),
            unpaired=dict(sorted(Counter(entry.reason for entry in paired.unpaired).items())),
            unpaired_entries=tuple(paired.unpaired),
            columns=dict(sorted(paired.columns.items())),
            notes=(*paired.notes, *_languages(record for part in parts for record in part.records)),
            options=dict(options),
        )

    def summary(self, *, resumed: int) -> PrepareSummary:
        """Return the counts and checks of the whole store."""
        return PrepareSummary(
            store=self.task.out,
            files=len(self.jobs),
            records=len(self.records),
            studies=len({record.study_id for record in self.records}),
            patients=len({record.patient_id for record in self.records}),
            failed=len(self.failures),
            failures=dict(sorted(Counter(failure.rule for failure in self.failures).items())),
            unpaired=self.unpaired,
            columns=self.columns,
            notes=self.notes,
            splits={name: sum(record.split == name for record in self.records) for name in SPLITS},
            checks=tuple(check_records(self.records)),
            redactions=dict(sorted(sum((Counter(r.redactions) for r in self.records), Counter()).items())),
            resumed=resumed,
        )


def assemble(prepared: Prepared, summary: PrepareSummary, *, source: Path) -> None:
    """Write the files that describe the store; only the last of them makes it a store."""
    task, out = prepared.task, prepared.task.out
    index = index_bytes(prepared.records)
    write_atomic(out / "index.parquet", index)
    lines = [json.dumps(dataclasses.asdict(failure), sort_keys=True) for failure in prepared.failures]
    write_atomic(out / "failures.jsonl", "".join(f"{line}\n" for line in lines).encode())
    write_sources(
        out / "private",
        ((job.record_id, job.token, Path(job.path).relative_to(source).as_posix()) for job in prepared.jobs),
    )
    write_unpaired(out / "private", _unpaired_rows(prepared.unpaired_entries, source))
    page = render_quality(
        prepared.records,
        failures=prepared.failures,
        counts=_counts(summary),
        columns=summary.columns,
        notes=summary.notes,
        kinds=prepared.kinds,
        checks=summary.checks,
        pixels=task.pixels,
        report=task.report,
        shards=out / "shards",
    )
    write_atomic(out / "quality.html", page.encode("utf-8", "replace"))
    manifest = {
        "format": FORMAT,
        "modality": task.modality,
        "specs": {
            "pixels": task.pixels.model_dump(mode="json"),
            "report": task.report.model_dump(mode="json"),
        },
        "digests": {"pixels": task.pixels.digest, "report": task.report.digest},
        "counts": _counts(summary),
        "columns": summary.columns,
        "labels": sorted({finding for record in prepared.records for finding in record.labels}),
        "options": prepared.options,
        "index": {
            "rows": len(prepared.records),
            "blake2b": index_digest(index),
        },
        "notice": NOTICE,
    }
    shutil.rmtree(out / "private" / "work", ignore_errors=True)
    write_atomic(out / "store.json", json.dumps(manifest, indent=1, sort_keys=True).encode())


def _languages(records: Iterable[Record]) -> list[str]:
    """Say once how many reports look like another language than the one they were read in."""
    noted = Counter(note for record in records for note in record.notes if note.startswith(OTHER_LANGUAGE))
    return [
        f"{count} × {note}; --report parser=NAME reads another language"
        for note, count in sorted(noted.items())
    ]


def _counts(summary: PrepareSummary) -> dict[str, Any]:
    names = ("files", "records", "studies", "patients", "failed", "failures", "unpaired", "splits")
    return {name: getattr(summary, name) for name in names}


def _unpaired_rows(entries: Sequence[Unpaired], source: Path) -> list[tuple[str, str, str, str, str]]:
    return sorted(
        (
            entry.reason,
            entry.token,
            relative_name(entry.path, source) if entry.path else "",
            str(entry.line or ""),
            HINTS.get(entry.reason, ""),
        )
        for entry in entries
    )
