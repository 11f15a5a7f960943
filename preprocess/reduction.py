"""Near-duplicates leave a store, the evidence of a report never does: pair-aware reduction by dHash.

The hash is that of Krawetz' difference hash: the picture is resampled to 8 × 9 and bit (r, c) says whether
pixel (r, c + 1) is brighter than (r, c). It moves by 8 bits with another window and by 63 with another
polarity, so it is taken of stored arrays alone, whose window, polarity and orientation are settled.
Threshold and greedy choice: Wolf et al. 2024, https://arxiv.org/abs/2410.14524.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8, UInt64

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.progress import Progress
from medvl.records import Box, Record
from medvl.splits import SPLITS
from medvl.store import Store

__all__ = ["Near", "Reduction", "dhash", "near_pairs", "reduce_pairs", "reduce_slices"]


DISTANCE = 6
"""Bits of 64: "Hash-6" of Wolf et al."""
_ROWS, _OTHERS = 128, 4096
"""Of a block of comparisons: its bits stay in the cache."""
_OVERLAP = 0.5
"""Intersection over union from which two boxes of one finding mark the same place."""


def dhash(pictures: UInt8[np.ndarray, "pictures rows columns"]) -> UInt64[np.ndarray, " pictures"]:
    """Return the 64-bit difference hash of pictures of one size, bit 63 first.

    ``bit(r, c) = [s(r, c + 1) > s(r, c)]`` with s the picture resampled to 8 rows and 9 columns by the
    Lanczos kernel of three lobes, rounded to 8 bits after the columns and after the rows as Pillow does.

    Examples:
        >>> ramp = np.tile(np.arange(0, 180, 2, dtype=np.uint8), (80, 1))
        >>> int(dhash(ramp[None])[0]) == 2**64 - 1, int(dhash(ramp[None, :, ::-1])[0])
        (True, 0)
    """
    rows, columns = pictures.shape[1:]
    small = _to_bytes(pictures.astype(np.float32) @ _lanczos(columns, 9).T)
    return _brighter(_to_bytes(_lanczos(rows, 8) @ small))


def _brighter(small: Float[np.ndarray, "pictures 8 9"]) -> UInt64[np.ndarray, " pictures"]:
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def _to_bytes(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.clip(np.floor(values + np.float32(0.5)), 0, 255)


@functools.lru_cache(maxsize=64)
def _lanczos(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """Return the weights that resample an axis; a reduction stretches the kernel, so nothing aliases."""
    scale = size / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    first = np.maximum((centres - 3 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + 3 * stretch + 0.5).astype(int), size)
    pixels = np.arange(size)
    x = (pixels + 0.5 - centres) / stretch
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    weights *= (pixels >= first) & (pixels < last)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Near(NamedTuple):
    """Pairs of rows whose hashes are near: ``first[k] < second[k]``."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    distance: Int[np.ndarray, " pairs"]


def near_pairs(
    hashes: UInt64[np.ndarray, " rows"],
    *,
    distance: int = DISTANCE,
    groups: Shaped[np.ndarray, " rows"] | None = None,
) -> Near:
    """Return all pairs at a Hamming distance of at most ``distance``, within groups if there are any.

    All pairs are compared, in blocks: some 400 million a second, so no index is needed.

    Examples:
        >>> near = near_pairs(np.array([0, 3, 7], np.uint64), distance=1)
        >>> near.first.tolist(), near.second.tolist(), near.distance.tolist()
        ([1], [2], [1])
    """
    if groups is None:
        found = list(_blocks(hashes, np.arange(len(hashes)), distance))
    else:
        _, group = np.unique(groups, return_inverse=True)
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        ends = np.cumsum(sizes)
        large = np.flatnonzero(sizes > 64)
        found = [
            each for g in large for each in _blocks(hashes, order[ends[g] - sizes[g] : ends[g]], distance)
        ]
        small = order[~np.isin(group[order], large)]
        found += list(_neighbours(hashes, small, group[small], distance))
    found.append(Near(*np.empty((3, 0), np.int64)))
    first, second, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((first, second))
    return Near(first[order], second[order], bits[order])


def _blocks(
    hashes: UInt64[np.ndarray, " rows"], rows: Int[np.ndarray, " some"], distance: int
) -> Iterator[Near]:
    """Compare every one of ``rows`` (ascending) with every later one."""
    chosen = hashes[rows]
    for a in range(0, len(rows), _ROWS):
        for b in range(a, len(rows), _OTHERS):
            bits = np.bitwise_count(chosen[a : a + _ROWS, None] ^ chosen[None, b : b + _OTHERS])
            i, j = np.divmod(np.flatnonzero(bits <= distance), bits.shape[1])
            later = i + a < j + b
            i, j = i[later], j[later]
            yield Near(rows[a + i], rows[b + j], bits[i, j].astype(np.int64))


def _neighbours(
    hashes: UInt64[np.ndarray, " rows"],
    rows: Int[np.ndarray, " some"],
    group: Int[np.ndarray, " some"],
    distance: int,
) -> Iterator[Near]:
    """Compare rows that are sorted by group with the next, the one after, … of their group, all at once."""
    shift = 1
    while shift < len(rows) and (same := group[shift:] == group[:-shift]).any():
        i = np.flatnonzero(same)
        bits = np.bitwise_count(hashes[rows[i]] ^ hashes[rows[i + shift]])
        i, bits = i[bits <= distance], bits[bits <= distance]
        yield Near(rows[i], rows[i + shift], bits.astype(np.int64))
        shift += 1


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
    hashes = _slice_hashes(volume, low=low, high=high)
    kept: list[int] = []
    for row, value in enumerate(hashes):
        if not kept or np.bitwise_count(hashes[kept] ^ value).min() > distance:
            kept.append(row)
    return np.array(kept, np.int64)


def _slice_hashes(
    volume: Shaped[np.ndarray, "rows columns slices"], *, low: float, high: float
) -> UInt64[np.ndarray, " slices"]:
    """Return :func:`dhash` of each slice, shown in 8 bits between ``low`` and ``high``; nothing is turned."""
    rows, columns, slices = volume.shape
    narrow = np.empty((rows, 9, slices), np.float32)
    for top in range(0, rows, 16):  # a strip stays in the cache, and a large series needs no copy
        strip = (volume[top : top + 16].astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        narrow[top : top + 16] = _to_bytes(_lanczos(columns, 9) @ _to_bytes(strip))
    small = _to_bytes(_lanczos(rows, 8) @ narrow.reshape(rows, 9 * slices))
    return _brighter(np.ascontiguousarray(np.moveaxis(small.reshape(8, 9, slices), -1, 0)))


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
        store: the store; its arrays are two-dimensional and of 8 bits. Others are not compared.
        distance: bits of 64 within which two pictures are similar.
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
    records.sort(key=lambda r: (-len(r.boxes), -len(r.labels) - len(r.said), r.record_id))
    hashes = np.empty(len(records), np.uint64)
    for place, record in enumerate(records):
        hashes[place] = dhash(store.pixels(record)[None])[0]
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
    return len(record.shape) == 2 and record.dtype == "uint8" and not record.geometry.startswith("rejected")


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
    """Whether two boxes of one finding overlap by half, as shares of their pictures."""
    if box.label != mine.label:
        return False
    a = _shares(box, record.shape)
    b = _shares(mine, kept.shape)
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return union > 0 and common / union >= _OVERLAP


def _shares(box: Box, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    rows, columns = shape
    return box.x0 / columns, box.y0 / rows, box.x1 / columns, box.y1 / rows
