"""The slices that a reduction keeps, written as a store of volumes one voxel thick.

A slice stays a volume of the same spec, in HU with its own place in the patient, so that every reader, window
and tower that takes volumes takes it too: image-only pre-training then reads what was kept, nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.manifest import described, write_manifest
from medvl.preprocess.quality import store_page
from medvl.preprocess.reduction_slices import SliceReduction
from medvl.progress import Progress
from medvl.records import Box, Record
from medvl.store import (
    Store,
    index_bytes,
    index_digest,
    new_folder,
    pixel_hash,
    write_atomic,
    write_shard,
)

__all__ = ["SlicesSummary", "write_slices"]

_SHARD_VOLUMES = 16


@dataclasses.dataclass(frozen=True)
class SlicesSummary:
    """What :func:`write_slices` wrote.

    Attributes:
        store: the new folder.
        records: slices that it holds.
        volumes, patients: that they are of.
        left_out: slices of these volumes that it does not hold.
    """

    store: Path
    records: int
    volumes: int
    patients: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store), "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        return [
            f"{self.records} slices of {self.volumes} volumes and {self.patients} patients",
            f"{self.left_out} slices left out; slices.csv lists them with those that stand for them",
            NOTICE,
        ]


def write_slices(
    store: Store, reduction: SliceReduction, out: str | Path, *, progress: Progress | None = None
) -> SlicesSummary:
    """Write the kept slices of each volume as records of shape (x, y, 1); a volume is in memory at a time.

    A slice keeps study, patient, split and report, so the slices of a study are positives of each other. Its
    affine, boxes and parts are its own; it has no labels, for a volume's labels do not hold for each slice.
    Specs stay as they are. ``slices.csv`` beside the index says what became of every slice.

    Args:
        store: the store that was reduced.
        reduction: by :func:`~medvl.preprocess.reduction_slices.reduce_store_slices`.
        out: a folder that does not exist yet, or is empty.
        progress: called with volumes written, volumes in all, and the step.

    Raises:
        UsageError: the reduction is of another store, or ``out`` is taken.
        StoreError: a volume cannot be read.
    """
    out = Path(out)
    records = [record for record in store.records if record.record_id in reduction.volumes]
    if len(records) != len(reduction.volumes):
        raise UsageError(
            f"the reduction names {len(reduction.volumes)} volumes; the store holds {len(records)} of them.",
            hint="Reduce this store.",
        )
    placed: list[Record] = []
    with new_folder(out) as draft:
        (draft / "shards").mkdir()
        for number, first in enumerate(range(0, len(records), _SHARD_VOLUMES)):
            some = records[first : first + _SHARD_VOLUMES]
            samples = (sample for record in some for sample in _slices(store, record, reduction))
            placed += write_shard(draft / "shards" / f"{number:06d}.tar", samples)
            if progress is not None:
                progress(min(first + _SHARD_VOLUMES, len(records)), len(records), "writing slices")
        placed.sort(key=lambda record: record.record_id)
        index = index_bytes(placed)
        write_atomic(draft / "index.parquet", index)
        source = index_digest((store.path / "index.parquet").read_bytes())
        manifest = described(store.manifest, placed, index) | {
            "selected_from": source,
            "slices": reduction.to_json(),
        }
        manifest.setdefault("counts", {})
        manifest["counts"] |= {"files": len(placed), "failed": 0, "failures": {}, "unpaired": {}}
        write_atomic(draft / "slices.csv", reduction.table().encode())
        write_atomic(draft / "quality.html", store_page(placed, manifest, draft).encode("utf-8", "replace"))
        write_manifest(draft, manifest)
    return SlicesSummary(
        store=out,
        records=len(placed),
        volumes=len(records),
        patients=len({record.patient_id for record in placed}),
        left_out=reduction.slices - reduction.kept,
    )


def _slices(
    store: Store, record: Record, reduction: SliceReduction
) -> Iterator[tuple[Record, Shaped[np.ndarray, "x y 1"], UInt8[np.ndarray, "x y 1"] | None]]:
    volume, parts = store.pixels(record), store.parts(record)
    for place in reduction.volumes[record.record_id].kept:
        slice_ = np.ascontiguousarray(volume[:, :, place : place + 1])
        of_parts = None if parts is None else np.ascontiguousarray(parts[:, :, place : place + 1])
        yield _record(store, record, place, slice_, of_parts), slice_, of_parts


def _record(
    store: Store,
    record: Record,
    place: int,
    slice_: Shaped[np.ndarray, "x y 1"],
    parts: UInt8[np.ndarray, "x y 1"] | None,
) -> Record:
    affine = record.affine_ras
    if affine:
        matrix = np.array(affine).reshape(4, 4)
        matrix[:3, 3] += place * matrix[:3, 2]
        affine = tuple(matrix.ravel().tolist())
    counts: dict[str, int] = {}
    if parts is not None:
        names = store.pixel_spec.parts if hasattr(store.pixel_spec, "parts") else ()
        voxels = np.bincount(parts.ravel(), minlength=len(names) + 1)
        counts = {name: int(voxels[k]) for k, name in enumerate(names, start=1) if voxels[k]}
    boxes = tuple(
        Box(box.label, box.x0, box.y0, box.x1, box.y1, 0.0, 1.0)
        for box in record.boxes
        if box.z0 is not None and box.z1 is not None and box.z0 < place + 1 and box.z1 > place
    )
    return dataclasses.replace(
        record,
        record_id=f"{record.record_id}z{place:04d}",
        shape=slice_.shape,
        affine_ras=affine,
        boxes=boxes,
        labels={},
        part_voxels=counts,
        pixel_hash=pixel_hash(slice_),
        parts_offset=0,
        parts_size=0,
        parts_crc32=0,
    )
