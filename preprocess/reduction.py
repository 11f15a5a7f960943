"""Near-duplicates leave a store, the evidence of a report never does: pair-aware reduction by dHash.

Threshold and greedy choice: Wolf et al. 2024, https://arxiv.org/abs/2410.14524.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.reduction_hashes import (
    DISTANCE,
    Near,
    dhash,
    near_pairs,
    slice_hashes,
    volume_hash,
)
from medvl.progress import Progress
from medvl.records import Box, Record
from medvl.splits import SPLITS
from medvl.store import Store

__all__ = ["Near", "Reduction", "dhash", "near_pairs", "reduce_pairs", "reduce_slices"]

_OVERLAP = 0.5
"""Intersection over union from which two boxes of one finding mark the same place."""


def reduce_slices(
    volume: Shaped[np.ndarray, "rows columns slices"],
    *,
    low: float = -1000.0,
    high: float = 1000.0,
    distance: int = DISTANCE,
) -> Int[np.ndarray, " kept"]:
    """Return which slices of a volume to keep: each one that is far from all kept before it.

    Args:
        volume: in canonical orientation, slices last.
        low: lower end of the window that is hashed, in the unit of the volume (HU for CT).
        high: upper end of it.
        distance: a slice within so many bits of a kept one is left out.

    Examples:
        >>> reduce_slices(np.zeros((32, 32, 5), np.int16)).tolist()
        [0]
    """
    hashes = slice_hashes(volume, low=low, high=high)
    kept: list[int] = []
    for row, value in enumerate(hashes):
        if not kept or np.bitwise_count(hashes[kept] ^ value).min() > distance:
            kept.append(row)
    return np.array(kept, np.int64)


class Pairing(NamedTuple):
    """A record that is like a kept one, how many bits they differ, and why it went or stayed."""

    record_id: str
    kept_id: str
    distance: int
    reason: str


@dataclass(frozen=True)
class Reduction:
    """What a reduction keeps, what it leaves out, and what it keeps though it is similar.

    Attributes:
        kept: record ids, in the order of the index.
        dropped: each left-out record with the kept one that stands for it; the reason says what of the
            report the kept one carries.
        protected: each record that is like a kept one and stays; the reason says what would be lost.
        looked_at: records that were compared.
        distance: bits within which two pictures count as similar.
        within: ``"patient"`` or ``"store"``.
        splits: only their records were compared.
    """

    kept: tuple[str, ...]
    dropped: tuple[Pairing, ...]
    protected: tuple[Pairing, ...]
    looked_at: int
    distance: int
    within: str
    splits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the reduction as JSON values."""
        values = dataclasses.asdict(self)
        for name in ("dropped", "protected"):
            values[name] = [pairing._asdict() for pairing in getattr(self, name)]
        return values | {"notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the reduction for people."""
        lines = [
            f"{self.looked_at} records of {', '.join(self.splits)} compared within each {self.within}, "
            f"similar within {self.distance} of 64 bits",
            f"{len(self.kept)} records stay, {len(self.dropped)} can go",
        ]
        for name in ("dropped", "protected"):
            counts = Counter(pairing.reason for pairing in getattr(self, name))
            lines += [f"{name}: {count} × {reason}" for reason, count in sorted(counts.items())]
        return [*lines, NOTICE]

    def table(self) -> str:
        """Return both lists as CSV: what became of it, record, kept record, distance, reason."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("outcome", *Pairing._fields))
        for outcome in ("dropped", "protected"):
            writer.writerows((outcome, *pairing) for pairing in getattr(self, outcome))
        return stream.getvalue()


def reduce_pairs(
    store: Store,
    *,
    distance: int = DISTANCE,
    within: Literal["patient", "store"] = "patient",
    splits: Sequence[str] = ("train",),
    progress: Progress | None = None,
) -> Reduction:
    """Find the records of a store that another one can stand for; nothing is written.

    Records are taken in turn, those with boxes and with more findings first; one goes if it is within
    ``distance`` of one that stays and loses nothing: same split, view and side; the same report, or no
    sentence, label or finding that the kept one lacks; and no box without its like. Each study keeps a record
    at least, so no report leaves the store with its last picture.

    Args:
        store: the store: films of 8 bits, or volumes in HU. Rejected records are not compared.
        distance: bits of 64 within which two pictures are similar; of volumes, each 64 of 512.
        within: compare the records of one patient, or of the whole store.
        splits: records of other splits stay as they are.
        progress: called with pictures hashed, pictures in all, and the step.

    Raises:
        UsageError: the distance is not 0 to 63, or a value is unknown.
        StoreError: a picture cannot be read.
    """
    if not 0 <= distance <= 63:
        raise UsageError(
            f"the distance is {distance}; allowed are 0 to 63 bits.", hint=f"Usual is {DISTANCE}."
        )
    if within not in ("patient", "store") or not set(splits) <= set(SPLITS):
        raise UsageError(
            f"within is {within!r} and splits are {tuple(splits)}.",
            hint=f"Allowed: within 'patient' or 'store'; splits of {', '.join(SPLITS)}.",
        )
    records = [r for r in store.records if r.split in splits and _comparable(r)]
    records.sort(key=lambda r: (-len(r.boxes), -len(r.labels) - len(r.said), _voxels(r), r.record_id))
    volumes = bool(records) and len(records[0].shape) == 3
    hashes = np.empty((len(records), 8 if volumes else 1), np.uint64)
    for place, record in enumerate(records):
        array = store.pixels(record)
        hashes[place] = volume_hash(array) if volumes else dhash(array[None])
        if progress is not None:
            progress(place + 1, len(records), "hashing pictures")
    groups = np.array([r.patient_id for r in records]) if within == "patient" else None
    near = near_pairs(hashes, distance=distance, groups=groups)
    left = Counter(r.study_id for r in store.records if not r.geometry.startswith("rejected"))
    dropped, protected = _greedy(records, near, left)
    gone = {pairing.record_id for pairing in dropped}
    return Reduction(
        kept=tuple(r.record_id for r in store.records if r.record_id not in gone),
        dropped=tuple(dropped),
        protected=tuple(protected),
        looked_at=len(records),
        distance=distance,
        within=within,
        splits=tuple(splits),
    )


def _comparable(record: Record) -> bool:
    known = (len(record.shape), record.dtype) in ((2, "uint8"), (3, "int16"))
    return known and not record.geometry.startswith("rejected")


def _voxels(record: Record) -> int:
    """Return what sorts the finer of two reconstructions first, and leaves films in their order."""
    return -math.prod(record.shape) if len(record.shape) == 3 else 0


def _greedy(records: Sequence[Record], near: Near, left: Counter[str]) -> tuple[list[Pairing], list[Pairing]]:
    """Go through the records in order; ``left`` counts the records that each study still has."""
    like: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, second, bits in zip(*(part.tolist() for part in near), strict=True):
        like[second].append((bits, first))
    gone: set[int] = set()
    dropped: list[Pairing] = []
    protected: list[Pairing] = []
    for place in sorted(like):
        record = records[place]
        kept = [(bits, records[other]) for bits, other in sorted(like[place]) if other not in gone]
        if not kept:
            continue
        verdicts = [(*_stands_for(other, record), bits, other) for bits, other in kept]
        goes = next((verdict for verdict in verdicts if verdict[0]), None)
        if goes is not None and left[record.study_id] > 1:
            _, reason, bits, other = goes
            left[record.study_id] -= 1
            gone.add(place)
            dropped.append(Pairing(record.record_id, other.record_id, bits, reason))
        else:
            _, reason, bits, other = goes or verdicts[0]
            reason = "last record of its study" if goes is not None else reason
            protected.append(Pairing(record.record_id, other.record_id, bits, reason))
    return dropped, protected


def _stands_for(kept: Record, record: Record) -> tuple[bool, str]:
    """Say whether ``kept`` carries all that ``record`` is evidence of, and what decides it."""
    if kept.split != record.split:
        return False, "another split"
    if (kept.view, kept.laterality) != (record.view, record.laterality):
        return False, "another view or side"
    if not all(any(_same_place(box, kept, mine, record) for mine in kept.boxes) for box in record.boxes):
        return False, "a box that the kept one lacks"
    if not record.labels.items() <= kept.labels.items():
        return False, "a label that the kept one lacks"
    if not record.text_hash or record.text_hash == kept.text_hash:
        return True, "the same report" if record.text_hash else "no report of its own"
    if set(record.retrieval) <= set(kept.retrieval):
        return True, "its sentences are among those of the kept one"
    if record.said and record.said.items() <= kept.said.items():
        return True, "its findings are among those of the kept one"
    return False, "a report that says something else"


def _same_place(box: Box, kept: Record, mine: Box, record: Record) -> bool:
    """Whether two boxes of one finding overlap by half: in shares of films, in millimetres of patients."""
    if box.label != mine.label:
        return False
    (low_a, high_a), (low_b, high_b) = _extent(box, record), _extent(mine, kept)
    if len(low_a) != len(low_b):
        return False
    common = float(np.prod(np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None)))
    union = float(np.prod(high_a - low_a) + np.prod(high_b - low_b)) - common
    return union > 0 and common / union >= _OVERLAP


def _extent(box: Box, record: Record) -> tuple[Float[np.ndarray, " axes"], Float[np.ndarray, " axes"]]:
    """Return the corners of a box: of a film in shares of it, of a volume in RAS millimetres."""
    if box.z0 is None or box.z1 is None or len(record.affine_ras) != 16:
        size = np.array([record.shape[1], record.shape[0]], float)
        return np.array([box.x0, box.y0]) / size, np.array([box.x1, box.y1]) / size
    affine = np.array(record.affine_ras).reshape(4, 4)
    # Voxel k reaches from k - 1/2 to k + 1/2 of the affine's index; boxes count edges.
    edges = itertools.product((box.x0, box.x1), (box.y0, box.y1), (box.z0, box.z1))
    corners = np.array([affine[:3, :3] @ (np.array(edge) - 0.5) + affine[:3, 3] for edge in edges])
    return corners.min(0), corners.max(0)
