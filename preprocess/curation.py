"""Stores out of stores: a smaller one from a choice of records, a larger one from two.

``select`` copies payloads byte for byte into a new folder that takes its name when it is complete.
``append`` adds shards first, then names the new index beside the old one in the manifest, swaps the index,
and writes the manifest last: at every moment the folder is either the old store or the new one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.lock import hold
from medvl.preprocess.manifest import described, swap, write_manifest
from medvl.preprocess.quality import store_page
from medvl.progress import Progress
from medvl.records import Record
from medvl.splits import SPLITS
from medvl.store import (
    Store,
    index_bytes,
    index_digest,
    new_folder,
    read_parts_payload,
    read_payload,
    write_atomic,
    write_payloads,
)

__all__ = ["AppendSummary", "Choice", "SelectSummary", "append", "select"]

Choice: TypeAlias = str | Sequence[str] | Bool[np.ndarray, " records"]
"""A pandas expression, record ids, or a mask over ``store.records``."""

_SHARD_RECORDS = 64


@dataclass(frozen=True)
class SelectSummary:
    """What :func:`select` wrote.

    Attributes:
        store: the new folder.
        records, studies, patients: that it holds.
        splits: split to number of records.
        left_out: records of the other store that were not chosen.
    """

    store: Path
    records: int
    studies: int
    patients: int
    splits: dict[str, int]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store), "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = ", ".join(f"{self.splits.get(name, 0)} {name}" for name in SPLITS)
        return [
            f"{self.records} records of {self.studies} studies and {self.patients} patients ({counts})",
            f"{self.left_out} records left out",
            "the pseudonym key stays with the first store; copy private/key to append to this one",
            NOTICE,
        ]


@dataclass(frozen=True)
class AppendSummary:
    """What :func:`append` did.

    Attributes:
        store: the store that grew.
        records: that it holds now.
        added: new records.
        there: records that it held already.
        moved: new records whose patient was in another split here; they follow the patient.
        splits: split to number of records.
    """

    store: Path
    records: int
    added: int
    there: int
    moved: int
    splits: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store), "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = ", ".join(f"{self.splits.get(name, 0)} {name}" for name in SPLITS)
        lines = [
            f"{self.added} records added, {self.there} were there already; now {self.records} ({counts})"
        ]
        if self.moved:
            lines.append(f"{self.moved} of the new records follow their patient into the split it has here")
        return [*lines, NOTICE]


def select(
    store: Store,
    choice: Choice,
    out: str | Path,
    *,
    shard_records: int = _SHARD_RECORDS,
    progress: Progress | None = None,
) -> SelectSummary:
    """Write a smaller store of the chosen records; splits, specs and payload bytes stay as they are.

    ``private/`` is not copied: the new store is one to hand on, and nothing in it needs the key. Neither is
    ``failures.jsonl``, which describes the preparation; ``quality.html`` is made anew.

    Args:
        store: the store to choose from.
        choice: record ids, a mask, or a pandas expression (:meth:`medvl.store.Store.where`).
        out: a folder that does not exist yet, or is empty.
        shard_records: most records in a shard.
        progress: called with records copied, records in all, and the step.

    Raises:
        UsageError: nothing is chosen, an id is unknown, or ``out`` is taken.
        StoreError: a payload is damaged.
    """
    out = Path(out)
    with new_folder(out) as draft:
        records = _chosen(store, choice)
        (draft / "shards").mkdir()
        placed = _copy(records, store, draft, first_shard=0, most=shard_records, progress=progress)
        index = index_bytes(placed)
        write_atomic(draft / "index.parquet", index)
        manifest = described(store.manifest, placed, index) | {"selected_from": _digest_of(store)}
        manifest["counts"] |= {"files": len(placed), "failed": 0, "failures": {}, "unpaired": {}}
        page = store_page(placed, manifest, draft)
        write_atomic(draft / "quality.html", page.encode("utf-8", "replace"))
        write_manifest(draft, manifest)
    counts = manifest["counts"]
    return SelectSummary(
        store=out,
        records=len(placed),
        studies=counts["studies"],
        patients=counts["patients"],
        splits=counts["splits"],
        left_out=len(store) - len(placed),
    )


def _copy(
    records: Sequence[Record],
    store: Store,
    path: Path,
    *,
    first_shard: int,
    most: int,
    progress: Progress | None,
) -> list[Record]:
    """Write records of ``store``, as they are given here, into new shards of the store at ``path``."""
    placed: list[Record] = []
    for number, first in enumerate(range(0, len(records), most), first_shard):
        some = records[first : first + most]
        shards = store.path / "shards"
        samples = (
            (record, read_payload(shards, record), read_parts_payload(shards, record)) for record in some
        )
        placed += write_payloads(path / "shards" / f"{number:06d}.tar", samples)
        if progress is not None:
            progress(len(placed), len(records), "copying records")
    return placed


def _chosen(store: Store, choice: Choice) -> list[Record]:
    if isinstance(choice, str):
        records = store.where(choice)
    elif isinstance(choice, np.ndarray):
        if choice.shape != (len(store),):
            raise UsageError(f"the mask has {choice.size} values; the store has {len(store)} records.")
        records = [record for record, wanted in zip(store.records, choice.tolist(), strict=True) if wanted]
    else:
        wanted_ids = set(choice)
        records = [record for record in store.records if record.record_id in wanted_ids]
        if unknown := sorted(wanted_ids - {record.record_id for record in records}):
            raise UsageError(
                f"{len(unknown)} of {len(wanted_ids)} ids are not in the store, for example {unknown[0]!r}.",
                hint="Ids are those of the column record_id.",
            )
    if not records:
        raise UsageError("no record is chosen.", hint="Look at the index: store.frame.")
    return records


def append(
    path: str | Path,
    more: str | Path,
    *,
    shard_records: int = _SHARD_RECORDS,
    progress: Progress | None = None,
) -> AppendSummary:
    """Add the records of a second store to a first one.

    Both must come from the same specs, modality and pseudonym key, so that equal ids mean equal patients. A
    patient keeps the split that it has in the first store, and its new records follow: no patient is ever
    in two splits. Records that are there already are skipped, so a call that was killed can be repeated.

    Args:
        path: the store that grows.
        more: the store whose records are added; it stays as it is.
        shard_records: most records in a new shard.
        progress: called with records copied, records in all, and the step.

    Raises:
        UsageError: the stores do not belong together, or an id is there with another content.
        StoreError: a payload of ``more`` is damaged, or the disk refuses to be written.
    """
    path, more = Path(path), Path(more)
    if path.resolve() == more.resolve():
        raise UsageError("a store cannot be appended to itself.", hint="Give two stores.")
    key = _key(path)
    with hold(path / "private" / "lock"):
        store, other = Store(path), Store(more)
        _belong_together(store, other, same_key=key == _key(more))
        old = {record.record_id: record for record in store.records}
        new = _new_records(old, other.records)
        split = {record.patient_id: record.split for record in store.records}
        joined = [dataclasses.replace(r, split=split.get(r.patient_id, r.split)) for r in new]
        moved = sum(a.split != b.split for a, b in zip(new, joined, strict=True))
        _join_private(path / "private", more / "private")
        first = _next_shard(store.records)
        placed = _copy(joined, other, path, first_shard=first, most=shard_records, progress=progress)
        everything = [*store.records, *placed]
        splits = _commit(store, other, everything)
    return AppendSummary(
        store=path,
        records=len(everything),
        added=len(placed),
        there=len(other) - len(placed),
        moved=moved,
        splits=splits,
    )


def _commit(store: Store, other: Store, records: Sequence[Record]) -> dict[str, int]:
    """Describe the joined store, and make it the store."""
    path, manifest = store.path, store.manifest
    index = index_bytes(records)
    after = described(manifest, records, index)
    failures = _joined_lines(path / "failures.jsonl", other.path / "failures.jsonl")
    write_atomic(path / "failures.jsonl", failures)
    rules = Counter(json.loads(line)["rule"] for line in failures.splitlines())
    after["counts"] |= {
        "files": len(records) + rules.total(),
        "failed": rules.total(),
        "failures": dict(sorted(rules.items())),
    }
    source = _digest_of(other)
    before = manifest.get("appended", [])
    if source not in before:
        after["appended"] = [*before, source]
        unpaired = Counter(manifest.get("counts", {}).get("unpaired", {}))
        unpaired.update(other.manifest.get("counts", {}).get("unpaired", {}))
        after["counts"]["unpaired"] = dict(sorted(unpaired.items()))
    after["labels"] = sorted({*manifest.get("labels", ()), *other.manifest.get("labels", ())})
    swap(store, records, index, after)
    return after["counts"]["splits"]


def _belong_together(store: Store, other: Store, *, same_key: bool) -> None:
    differing = [
        f"{name} is {ours!r} here and {theirs!r} there"
        for name, ours, theirs in (
            ("modality", store.manifest.get("modality"), other.manifest.get("modality")),
            ("pixel spec", store.pixel_spec.digest, other.pixel_spec.digest),
            ("report spec", store.report_spec.digest, other.report_spec.digest),
        )
        if ours != theirs
    ]
    if differing:
        raise UsageError(
            f"the stores do not belong together: {'; '.join(differing)}.",
            hint="Prepare the second source again with the options of the first.",
        )
    if not same_key:
        raise UsageError(
            "the stores were made with different pseudonym keys: one patient would have two ids.",
            hint="Prepare the second source again with --key and private/key of the first store.",
        )


def _key(path: Path) -> bytes:
    key = path / "private" / "key"
    if not key.is_file():
        raise UsageError(
            "a store has no private/key, so nobody can tell whether its ids fit.",
            hint="Copy private/key from the store that it was selected from, if it comes from the same lab.",
        )
    return key.read_bytes()


def _new_records(old: dict[str, Record], records: Iterable[Record]) -> list[Record]:
    """Return the records that are not there yet."""
    new, other_content = [], []
    for record in records:
        there = old.get(record.record_id)
        if there is None:
            new.append(record)
        elif (there.pixel_hash, there.text_hash) != (record.pixel_hash, record.text_hash):
            other_content.append(record.record_id)
    if other_content:
        raise UsageError(
            f"{len(other_content)} records are there with other pixels or another report, for example "
            f"{other_content[0]}.",
            hint="An id is a hash of the path below the source: prepare the second source inside a folder of "
            "another name. If it is a correction, select the records out of the first store before.",
        )
    return new


def _next_shard(records: Iterable[Record]) -> int:
    """Return the first number after all that the index knows; what a killed call left behind is replaced."""
    numbers = [int(stem) for record in records if (stem := record.shard.removesuffix(".tar")).isdigit()]
    return max(numbers, default=-1) + 1


def _join_private(private: Path, more: Path) -> None:
    """Keep the way back from the new records to their sources."""
    for name in ("sources.csv", "unpaired.csv"):
        tables = [_csv_rows(folder / name) for folder in (private, more)]
        if not tables[1]:
            continue
        header = tables[0][:1] or tables[1][:1]
        stream = io.StringIO()
        rows = {tuple(row) for table in tables for row in table[1:]}
        csv.writer(stream, lineterminator="\n").writerows([*header, *sorted(rows)])
        previous = os.umask(0o077)
        try:
            write_atomic(private / name, stream.getvalue().encode("utf-8", "surrogateescape"))
        finally:
            os.umask(previous)


def _csv_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.reader(stream))


def _joined_lines(first: Path, second: Path) -> bytes:
    lines = [line for path in (first, second) if path.is_file() for line in path.read_bytes().splitlines()]
    return b"".join(line + b"\n" for line in sorted(set(lines)))


def _digest_of(store: Store) -> str:
    """Return the digest of a store's index, which names its content."""
    return index_digest((store.path / "index.parquet").read_bytes())
