"""A finished store gets other records or other values: index and manifest change places as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvl.errors import StoreError
from medvl.notice import NOTICE
from medvl.preprocess.quality import store_page
from medvl.records import Record
from medvl.splits import SPLITS
from medvl.store import Store, index_bytes, index_digest, write_atomic

__all__ = ["described", "replace_records", "swap", "write_manifest"]


def replace_records(store: Store, records: Sequence[Record], *, marks: dict[str, Any]) -> None:
    """Give the records of a store other values; payloads and places stay.

    The caller holds the lock of the store.

    Args:
        store: the store.
        records: all of its records.
        marks: what the manifest says of the change.

    Raises:
        StoreError: the disk refuses to be written.
    """
    index = index_bytes(records)
    swap(store, records, index, described(store.manifest, records, index) | marks)


def swap(store: Store, records: Sequence[Record], index: bytes, manifest: dict[str, Any]) -> None:
    """Swap index and manifest; killed between any two of these lines, the folder is a whole store."""
    path = store.path
    promised = store.manifest.get("index", {}) | {"next": index_digest(index)}
    write_manifest(path, store.manifest | {"index": promised})
    write_atomic(path / "index.parquet", index)
    write_atomic(path / "quality.html", store_page(records, manifest, path).encode("utf-8", "replace"))
    write_manifest(path, manifest)


def described(manifest: dict[str, Any], records: Sequence[Record], index: bytes) -> dict[str, Any]:
    """Return a manifest whose counts and index are those of ``records``."""
    return manifest | {
        "counts": manifest.get("counts", {})
        | {
            "records": len(records),
            "studies": len({record.study_id for record in records}),
            "patients": len({record.patient_id for record in records}),
            "splits": {name: sum(record.split == name for record in records) for name in SPLITS},
        },
        "labels": sorted({finding for record in records for finding in record.labels}),
        "index": {"rows": len(records), "blake2b": index_digest(index)},
        "notice": NOTICE,
    }


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write ``store.json``, whole or not at all.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        write_atomic(path / "store.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise StoreError("the record store cannot be written.", hint="Look at the disk.") from error
