"""What can be wrong with a whole store though every record is right: leaks, twins, gaps, conflicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from medvl.records import IS_PRESENT, Record
from medvl.store import Store

__all__ = ["Check", "check_records", "check_store"]

Level = Literal["ok", "note", "problem"]
_SHOWN = 12


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: a short stable name.
        says: what was looked for, in words.
        level: ``"ok"``; ``"note"``, to be known; ``"problem"``, to be mended before a figure is believed.
        count: how often it was found.
        groups: the record ids of the first findings, a tuple each.
    """

    name: str
    says: str
    level: Level
    count: int
    groups: tuple[tuple[str, ...], ...] = ()


def check_store(store: Store) -> list[Check]:
    """Run every check on a finished store; see :func:`check_records`."""
    return check_records(store.records)


def check_records(records: Sequence[Record]) -> list[Check]:
    """Look for leaks between splits, duplicates, missing reports and labels in conflict.

    A patient or a picture in two splits is a problem: the model would be tested on what it has seen.
    The same words in two splits are a note, since hospitals write the same normal report every day.

    Returns:
        One check a question, in a fixed order, with the number of findings.
    """

    def split(record: Record) -> str:
        return record.split

    def patient(record: Record) -> str:
        return record.patient_id

    by_patient = _groups(records, patient)
    by_pixels = _groups(records, lambda record: record.pixel_hash)
    by_text = _groups([r for r in records if r.text_hash], lambda record: record.text_hash)
    by_study = _groups(records, lambda record: record.study_id)
    twins = [group for group in by_pixels if len(group) > 1]
    silent = [(record,) for record in records if not record.text_hash]
    wordless = [(record,) for record in records if record.text_hash and not record.retrieval]
    return [
        _check("patient-leak", "patients in more than one split", _differing(by_patient, split), "problem"),
        _check(
            "pixel-leak", "equal pictures in more than one split", _differing(by_pixels, split), "problem"
        ),
        _check("report-leak", "equal reports in more than one split", _differing(by_text, split), "note"),
        _check("equal-pixels", "pictures that are stored more than once", twins, "note"),
        _check(
            "pixel-patients", "equal pictures under different patients", _differing(twins, patient), "problem"
        ),
        _check(
            "report-patients", "equal reports under different patients", _differing(by_text, patient), "note"
        ),
        _check(
            "study-reports",
            "studies with more than one report",
            _differing(by_study, lambda record: record.text_hash),
            "note",
        ),
        _check(
            "label-conflict",
            "findings both present and absent in one study or picture",
            [g for g in [*by_study, *twins] if _in_conflict(g)],
            "problem",
        ),
        _check("no-report", "records without a report", silent, "note"),
        _check("no-sentence", "reports of which no sentence is kept", wordless, "note"),
    ]


def _groups(records: Iterable[Record], key: Callable[[Record], str]) -> list[tuple[Record, ...]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return [tuple(group) for _, group in sorted(groups.items())]


def _differing(
    groups: Iterable[tuple[Record, ...]], what: Callable[[Record], str]
) -> list[tuple[Record, ...]]:
    return [group for group in groups if len({what(record) for record in group}) > 1]


def _in_conflict(group: Iterable[Record]) -> bool:
    said = {(finding, state) for record in group for finding, state in record.labels.items()}
    return any(IS_PRESENT.get(state) and (finding, "absent") in said for finding, state in said)


def _check(name: str, says: str, groups: Sequence[Sequence[Record]], level: Level) -> Check:
    shown = tuple(tuple(record.record_id for record in group[:_SHOWN]) for group in groups[:_SHOWN])
    return Check(name, says, level if groups else "ok", len(groups), shown)
