"""What can be wrong with a whole store though every record is right: leaks, twins, gaps, conflicts.

Every question is asked of the columns of the index at once, so that 100,000 records take about a second.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from medvl.errors import StoreError
from medvl.notice import NOTICE
from medvl.preprocess.groups import Column, Rows, records_table
from medvl.preprocess.sides import VOLUME_AXES, side_conflict, side_of_view
from medvl.progress import Progress
from medvl.records import IS_PRESENT, Record
from medvl.specs import PLACEHOLDER
from medvl.store import Store, pixel_hash, row_record
from medvl.store.schema import finding_states

__all__ = ["Check", "StoreCheck", "check_records", "check_store"]

Level = Literal["ok", "note", "problem"]

_SHOWN = 12
_FEW_LETTERS = 5
"""Fewer letters than this say nothing: "N/A", "None", "___"; "Normal." has six."""
_FEW_BYTES = 200
_BLANK = re.compile(rf"{PLACEHOLDER.pattern}|\[[^\]]{{0,60}}\]")
"""A placeholder as it was given, or as a view shows it."""
_FRONTAL = ("PA", "AP")
_COLUMNS = (
    "record_id",
    "study_id",
    "patient_id",
    "split",
    "view",
    "laterality",
    "retrieval",
    "labels",
    "said",
    "boxes",
    "shape",
    "text_hash",
    "pixel_hash",
    "pixel_digest",
    "report_digest",
)


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: a short stable name.
        says: what was looked for, in words.
        level: ``"ok"``; ``"note"``, to be known; ``"problem"``, to be mended before a figure is believed.
        count: how often it was found.
        groups: the record ids of the first findings, a tuple each; of all findings where that was asked for.
    """

    name: str
    says: str
    level: Level
    count: int
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class StoreCheck:
    """All checks of one store.

    Attributes:
        store: the folder.
        records: number of records.
        checks: one a question, in a fixed order.
        deep: whether every payload was read and decoded.
    """

    store: Path
    records: int
    checks: tuple[Check, ...]
    deep: bool

    @property
    def worst(self) -> Level:
        """The worst level of all checks."""
        return max((check.level for check in self.checks), key=("ok", "note", "problem").index, default="ok")

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store), "worst": self.worst, "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the report for people: the problems first, each with some of the records."""
        found = [check for check in self.checks if check.level != "ok"]
        lines = [f"{self.records} records, {len(self.checks)} checks, {len(found)} with findings"]
        for check in sorted(found, key=lambda check: check.level != "problem"):
            lines.append(f"{check.level}: {check.count} {check.says} ({check.name})")
            lines += [f"    {' '.join(group[:_SHOWN])}" for group in check.groups[:_SHOWN]]
            if check.count > len(check.groups[:_SHOWN]):
                lines.append(f"    … and {check.count - len(check.groups[:_SHOWN])} more")
        return [*lines, NOTICE]

    def table(self) -> str:
        """Return every finding that is held as CSV: check, level, number of the finding, record id."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("check", "level", "finding", "record_id"))
        for check in self.checks:
            for number, group in enumerate(check.groups):
                writer.writerows((check.name, check.level, number, name) for name in group)
        return stream.getvalue()


def check_store(
    store: Store,
    *,
    deep: bool = False,
    shown: int | None = _SHOWN,
    progress: Progress | None = None,
) -> StoreCheck:
    """Run every check on a finished store; see :func:`check_records`.

    Besides, all shards must be there and long enough, and no other file may lie among them.

    Args:
        store: the store.
        deep: also read and decode every payload and compare its hash.
        shown: findings, and records of each, that are named; None for all.
        progress: called with payloads read, payloads in all, and the step.
    """
    table = store.columns(*_COLUMNS, "shard", "offset", "size", "parts_offset", "parts_size")
    digests = store.manifest.get("digests", {})
    checks = [*_index_checks(table, shown=shown, digests=digests), *_shard_checks(store, table, shown=shown)]
    if deep:
        checks.append(_damaged(store, shown=shown, progress=progress))
    return StoreCheck(store.path, table.num_rows, tuple(checks), deep)


def check_records(records: Sequence[Record], *, shown: int | None = _SHOWN) -> list[Check]:
    """Look for leaks between splits, duplicates, missing reports, and sides and labels in conflict.

    A patient or a picture in two splits is a problem: the model would be tested on what it has seen.
    The same words in two splits are a note, since hospitals write the same normal report every day.

    Args:
        records: in any order.
        shown: findings, and records of each, that are named; None for all.

    Returns:
        One check a question, in a fixed order, with the number of findings.
    """
    return _index_checks(records_table(records, _COLUMNS), shown=shown, digests={})


def _index_checks(table: pa.Table, *, shown: int | None, digests: dict[str, str]) -> list[Check]:
    """Return the checks that need no more than the index."""
    column = {
        name: Column(table[name])
        for name in ("record_id", "study_id", "patient_id", "split", "text_hash", "pixel_hash", "view")
    }
    study, patient, split = column["study_id"], column["patient_id"], column["split"]
    text, pixels = column["text_hash"], column["pixel_hash"]
    laterality = Column(table["laterality"])
    reported = text.codes != text.code("")
    worded = pc.list_value_length(table["retrieval"]).to_numpy() > 0
    check = functools.partial(_check, ids=table["record_id"], shown=shown)
    problem, note = (functools.partial(check, level=level) for level in ("problem", "note"))
    return [
        problem("patient-leak", "patients in more than one split", patient.groups(patient.differing(split))),
        problem("study-leak", "studies in more than one split", study.groups(study.differing(split))),
        problem(
            "pixel-leak", "equal pictures in more than one split", pixels.groups(pixels.differing(split))
        ),
        note(
            "report-leak",
            "equal reports in more than one split",
            text.groups(text.differing(split, where=reported)),
        ),
        note("equal-pixels", "pictures that are stored more than once", pixels.groups(pixels.several())),
        problem(
            "pixel-patients",
            "equal pictures under different patients",
            pixels.groups(pixels.differing(patient)),
        ),
        note(
            "report-patients",
            "equal reports under different patients",
            text.groups(text.differing(patient, where=reported)),
        ),
        note("study-reports", "studies with more than one report", study.groups(study.differing(text))),
        problem(
            "study-patients", "studies under more than one patient", study.groups(study.differing(patient))
        ),
        problem(
            "label-conflict",
            "findings both present and absent in one study or picture",
            _label_conflicts(finding_states(table["labels"]), study, pixels),
        ),
        note("label-report", "records whose label says the opposite of their report", _against_report(table)),
        note(
            "side-conflict",
            "studies, pictures or views with contradicting sides",
            _side_conflicts(study, pixels, column["view"], laterality),
        ),
        problem(
            "box-side",
            "records with a box on the other side than their report says",
            _box_conflicts(table),
        ),
        note("no-report", "records without a report", _alone(~reported)),
        note("no-sentence", "reports of which no sentence is kept", _alone(reported & ~worded)),
        note("near-empty", "reports of which next to no words are kept", _alone(worded & _near_empty(table))),
        problem("mixed-specs", "records made with another spec than the rest", _foreign(table, digests)),
        problem("equal-ids", "record ids that are there more than once", _twice(column["record_id"])),
    ]


def _check(
    name: str,
    says: str,
    groups: Sequence[Rows],
    *,
    level: Level,
    ids: pa.ChunkedArray,
    shown: int | None,
) -> Check:
    named = tuple(tuple(ids.take(pa.array(group[:shown])).to_pylist()) for group in groups[:shown])
    return Check(name, says, level if groups else "ok", len(groups), named)


def _alone(where: Bool[np.ndarray, " rows"]) -> list[Rows]:
    return list(np.flatnonzero(where)[:, None])


def _twice(ids: Column) -> list[Rows]:
    return ids.groups(ids.several())


def _near_empty(table: pa.Table) -> Bool[np.ndarray, " rows"]:
    views = table["retrieval"].combine_chunks()
    ends = np.concatenate([[0], np.cumsum(pc.binary_length(views.values).to_numpy(zero_copy_only=False))])
    first, last = (ends[views.offsets.to_numpy()[part]] for part in (slice(None, -1), slice(1, None)))
    short = np.flatnonzero(last - first < _FEW_BYTES)
    empty = np.zeros(table.num_rows, bool)
    empty[short] = [_letters(view) < _FEW_LETTERS for view in views.take(pa.array(short)).to_pylist()]
    return empty


def _letters(view: Sequence[str]) -> int:
    return sum(letter.isalpha() for letter in _BLANK.sub("", " ".join(view)))


def _is(states: pa.Table, wanted: bool) -> Bool[np.ndarray, "rows findings"]:  # noqa: FBT001
    """Return where a finding is present, or absent; "uncertain" and null are neither."""
    allowed = pa.array([state for state, present in IS_PRESENT.items() if present is wanted])
    found = [pc.is_in(column, value_set=allowed).to_numpy() for column in states.columns]
    return np.stack(found, 1) if found else np.zeros((0, 0), bool)


def _label_conflicts(states: pa.Table, *columns: Column) -> list[Rows]:
    present, absent = _is(states, True), _is(states, False)  # noqa: FBT003
    if not present.size:
        return []
    conflicts: list[Rows] = []
    for column in columns:
        groups = np.zeros(len(column.keys), bool)
        for finding in range(present.shape[1]):
            said = [
                np.bincount(column.codes[x[:, finding]], minlength=len(groups)) for x in (present, absent)
            ]
            groups |= (said[0] > 0) & (said[1] > 0)
        conflicts += column.groups(np.flatnonzero(groups))
    return conflicts


def _against_report(table: pa.Table) -> list[Rows]:
    rows = np.flatnonzero(pc.not_equal(table["labels"], table["said"]).to_numpy())
    labels, said = (finding_states(table[name].take(pa.array(rows))) for name in ("labels", "said"))
    both = [name for name in labels.column_names if name in said.column_names]
    if not both:
        return []
    labels, said = labels.select(both), said.select(both)
    wrong = (_is(labels, True) & _is(said, False)) | (_is(labels, False) & _is(said, True))  # noqa: FBT003
    return list(rows[wrong.any(1)][:, None])


def _side_conflicts(study: Column, pixels: Column, view: Column, laterality: Column) -> list[Rows]:
    """Return views that name another side than their laterality, and studies and pictures with both sides.

    In a study only frontal films count: a left and a right lateral belong together.
    """
    sided = np.isin(laterality.codes, [laterality.code("L"), laterality.code("R")])
    named = [side_of_view(key) for key in view.keys.to_pylist()]
    codes = np.array([laterality.code(side) if side else -1 for side in named] + [-1])  # the last: no view
    against = sided & (codes[view.codes] != -1) & (codes[view.codes] != laterality.codes)
    frontal = np.isin(view.codes, [view.code(name) for name in _FRONTAL])
    return [
        *_alone(against),
        *study.groups(study.differing(laterality, where=sided & frontal)),
        *pixels.groups(pixels.differing(laterality, where=sided)),
    ]


def _box_conflicts(table: pa.Table) -> list[Rows]:
    frontal = pc.is_in(table["view"], value_set=pa.array(_FRONTAL))
    volume = pc.equal(pc.list_value_length(table["shape"]), VOLUME_AXES)
    sided = pc.or_(pc.fill_null(frontal, False), pc.fill_null(volume, False))  # noqa: FBT003
    rows = np.flatnonzero(pc.and_(sided, pc.not_equal(table["boxes"], "[]")).to_numpy())
    chosen = table.select(["boxes", "retrieval", "shape"]).take(pa.array(rows)).to_pylist()
    wrong = [
        bool(row["shape"]) and side_conflict(json.loads(row["boxes"]), row["retrieval"], row["shape"])
        for row in chosen
    ]
    return list(rows[np.array(wrong, bool)][:, None])


def _foreign(table: pa.Table, digests: dict[str, str]) -> list[Rows]:
    """Return the records whose spec digest is not the manifest's, or else not the most frequent one."""
    foreign: list[Rows] = []
    for name, spec in (("pixel_digest", "pixels"), ("report_digest", "report")):
        column = Column(table[name])
        if not table.num_rows:
            continue
        common = int(np.bincount(column.codes).argmax())
        expected = column.code(digests[spec]) if spec in digests else common
        foreign += column.groups(np.setdiff1d(np.unique(column.codes), [expected]))
    return foreign


def _shard_checks(store: Store, table: pa.Table, *, shown: int | None) -> list[Check]:
    folder = store.path / "shards"
    there = {path.name: path.stat().st_size for path in folder.glob("*")} if folder.is_dir() else {}
    shard = Column(table["shard"])
    members = (("offset", "size"), ("parts_offset", "parts_size"))
    ends = np.max([pc.add(table[first], table[size]).to_numpy() for first, size in members], axis=0)
    long = np.array([there.get(name, -1) for name in shard.keys.to_pylist()] or [-1])
    lost = np.unique(shard.codes[long[shard.codes] < ends])
    strays = sorted(set(there) - set(shard.keys.to_pylist()))
    return [
        _check(
            "missing-shard",
            "shards that are missing or cut short",
            shard.groups(lost),
            level="problem",
            ids=table["record_id"],
            shown=shown,
        ),
        Check(
            "stray-shard",
            "files among the shards that the index does not know",
            "note" if strays else "ok",
            len(strays),
            tuple((re.sub(r"[^A-Za-z0-9._-]", "?", name),) for name in strays[:shown]),
        ),
    ]


def _damaged(store: Store, *, shown: int | None, progress: Progress | None) -> Check:
    """Read and decode every payload, and that of its parts; the picture must be the one that was hashed."""
    damaged: list[tuple[str]] = []
    table = store.table
    for done in range(table.num_rows):
        record = row_record(table.slice(done, 1).to_pylist()[0])
        try:
            store.parts(record)
            if pixel_hash(store.pixels(record)) != record.pixel_hash:
                damaged.append((record.record_id,))
        except StoreError:
            damaged.append((record.record_id,))
        if progress is not None:
            progress(done + 1, table.num_rows, "reading payloads")
    return Check(
        "damaged-payload",
        "records whose pixels cannot be read or are not those that were stored",
        "problem" if damaged else "ok",
        len(damaged),
        tuple(damaged[:shown]),
    )
