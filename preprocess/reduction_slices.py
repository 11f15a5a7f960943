"""The slices of a volume that tell something new: by perceptual hash, by embedding, or by information.

Slices are gone through in order, and one goes when a kept one is so like it that it says nothing of its own.
The slice in the middle of a marked finding always stays. Hash and greedy choice: Wolf et al. 2024,
https://arxiv.org/abs/2410.14524.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from medvl.errors import ConfigError, UsageError, nearest
from medvl.notice import NOTICE
from medvl.preprocess.reduction_hashes import DISTANCE, slice_hashes
from medvl.progress import Progress
from medvl.records import Box, Record
from medvl.splits import SPLITS
from medvl.store import Store

__all__ = [
    "METHODS",
    "THRESHOLDS",
    "KeptSlices",
    "SliceLike",
    "SliceReduction",
    "VectorsOf",
    "evidence_slices",
    "reduce_store_slices",
    "reduce_volume",
    "shared_information",
]

METHODS = ("hash", "embedding", "information")
VectorsOf: TypeAlias = Callable[[Record, Shaped[np.ndarray, "x y z"]], Float[np.ndarray, "slices dim"]]
"""Returns one vector a slice: any encoder's."""

THRESHOLDS: dict[str, float] = {"hash": DISTANCE, "embedding": 0.95, "information": 0.45}
"""What counts as alike: bits of 64 at most, cosine at least, share of the information at least."""

_LEVELS = 16
_SIDE = 96


class SliceLike(NamedTuple):
    """A slice that went, the kept one that stands for it, and how alike they are in the method's measure."""

    slice: int
    kept: int
    measure: float


@dataclass(frozen=True)
class KeptSlices:
    """What became of the slices of one volume.

    Attributes:
        kept: indices along the last axis, ascending.
        dropped: the others, each with the kept slice that it is most like.
        evidence: of the kept ones, those that stay because a finding is marked in them.
    """

    kept: tuple[int, ...]
    dropped: tuple[SliceLike, ...] = ()
    evidence: tuple[int, ...] = ()


def reduce_volume(
    volume: Shaped[np.ndarray, "x y z"],
    *,
    method: str = "hash",
    threshold: float | None = None,
    low: float = -1000.0,
    high: float = 1000.0,
    vectors: Float[np.ndarray, "slices dim"] | None = None,
    evidence: Sequence[int] = (),
) -> KeptSlices:
    """Choose the axial slices of a volume that tell something new.

    Slice after slice along the last axis is compared with all kept so far, those of ``evidence`` first. It
    goes if one of them is alike:

    - ``hash``: ``popcount(dHash(s) ⊕ dHash(k)) ≤ threshold``, bits of 64 (:func:`~.reduction_hashes.dhash`);
    - ``embedding``: ``cos(v_s, v_k) ≥ threshold`` of given ``vectors``;
    - ``information``: ``I(s; k) / H(s) ≥ threshold`` (:func:`shared_information`).

    Args:
        volume: in canonical orientation, the slices last, in HU or another unit.
        method: the measure.
        threshold: see above; default: that of :data:`THRESHOLDS`.
        low: lower end of the window that ``hash`` and ``information`` look at.
        high: upper end of it.
        vectors: for ``embedding``, one a slice.
        evidence: slices that stay whatever they are like.

    Raises:
        ConfigError: an unknown method, a threshold or a slice out of range, vectors missing or of another
            number.

    Examples:
        >>> ramp = np.tile(np.arange(32, dtype=np.int16)[:, None, None] * 60 - 1000, (1, 32, 6))
        >>> reduce_volume(ramp).kept, reduce_volume(ramp, evidence=[4]).kept
        ((0,), (4,))

    Source: Wolf et al. 2024 for the hash within a volume; embeddings and information are other measures
    for the same greedy choice.
    """
    if method not in METHODS:
        raise ConfigError(f"method is '{method}'.", hint=nearest(method, METHODS))
    limit = THRESHOLDS[method] if threshold is None else threshold
    least, most = (0.0, 63.0) if method == "hash" else (-1.0, 1.0) if method == "embedding" else (0.0, 1.0)
    if not least <= limit <= most:
        raise ConfigError(
            f"the threshold of '{method}' is {limit}.",
            hint=f"Allowed: {least:g} to {most:g}; usual is {THRESHOLDS[method]:g}.",
        )
    count = volume.shape[2]
    if not all(0 <= place < count for place in evidence):
        raise ConfigError(
            f"evidence names slices {sorted(evidence)} of {count}.", hint=f"Allowed: 0 to {count - 1}."
        )
    compare = _measure(volume, method, low=low, high=high, vectors=vectors)
    first = sorted(set(evidence))
    kept, dropped = list(first), []
    for place in range(count):
        if place in first:
            continue
        if kept:
            alike = compare(place, kept)
            best = int(np.argmin(alike) if method == "hash" else np.argmax(alike))
            if alike[best] <= limit if method == "hash" else alike[best] >= limit:
                dropped.append(SliceLike(place, kept[best], round(float(alike[best]), 4)))
                continue
        kept.append(place)
    return KeptSlices(tuple(sorted(kept)), tuple(dropped), tuple(first))


_Compare: TypeAlias = Callable[[int, Sequence[int]], Shaped[np.ndarray, " kept"]]


def _measure(
    volume: Shaped[np.ndarray, "x y z"],
    method: str,
    *,
    low: float,
    high: float,
    vectors: Float[np.ndarray, "slices dim"] | None,
) -> _Compare:
    """Return what compares one slice with several."""
    if method == "hash":
        # Shown as radiologists see it, so that the hash is that of the published pictures.
        hashes = slice_hashes(np.swapaxes(volume, 0, 1)[::-1], low=low, high=high)
        return lambda place, kept: np.bitwise_count(hashes[list(kept)] ^ hashes[place])
    if method == "embedding":
        if vectors is None or len(vectors) != volume.shape[2]:
            given = "none" if vectors is None else str(len(vectors))
            raise ConfigError(
                f"there are {volume.shape[2]} slices and {given} vectors.", hint="Give one vector a slice."
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return lambda place, kept: unit[list(kept)] @ unit[place]
    levels = _levels(volume, low=low, high=high)
    return lambda place, kept: np.array([shared_information(levels[place], levels[k]) for k in kept])


def shared_information(
    mine: UInt8[np.ndarray, " pixels"], other: UInt8[np.ndarray, " pixels"], *, levels: int = _LEVELS
) -> float:
    """Return the share of one picture's information that another one tells, in [0, 1].

    ``I(X; Y) / H(X)`` with ``I(X; Y) = H(X) + H(Y) − H(X, Y)`` over the grey levels of pixels at equal
    places; 1 for a picture of one level, which tells nothing.

    Args:
        mine: grey levels below ``levels``.
        other: those of the other picture.
        levels: how many.

    Examples:
        >>> half = np.repeat(np.array([0, 1], np.uint8), 50)
        >>> shared_information(half, 1 - half), shared_information(half, np.tile([0, 1], 50).astype(np.uint8))
        (1.0, 0.0)

    Source: the uncertainty coefficient, Theil 1970, https://doi.org/10.1086/224909.
    """
    pairs = np.bincount(mine.astype(np.int64) * levels + other, minlength=levels**2)
    joint = pairs.reshape(levels, levels) / len(mine)
    own, theirs, both = (_entropy(part) for part in (joint.sum(1), joint.sum(0), joint.ravel()))
    return 1.0 if own <= 0 else float(min(1.0, max(0.0, (own + theirs - both) / own)))


def _entropy(shares: Float[np.ndarray, " cells"]) -> float:
    filled = shares[shares > 0]
    return float(-(filled * np.log(filled)).sum())


def _levels(volume: Shaped[np.ndarray, "x y z"], *, low: float, high: float) -> UInt8[np.ndarray, "z pixels"]:
    """Return the grey levels of each slice, thinned so that its longer side has about 96 pixels."""
    step = max(1, max(volume.shape[:2]) // _SIDE)
    thin = volume[::step, ::step].astype(np.float32)
    shown = np.clip((thin - low) * (_LEVELS / (high - low)), 0, _LEVELS - 1).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(shown, 2, 0)).reshape(volume.shape[2], -1)


def evidence_slices(boxes: Iterable[Box], *, depth: int) -> tuple[int, ...]:
    """Return the slice in the middle of each box of a volume: what the report says must stay to be seen.

    Examples:
        >>> evidence_slices([Box("nodule", 1.0, 1.0, 4.0, 4.0, 10.0, 15.0)], depth=20)
        (12,)
    """
    middles = {
        min(max(int((box.z0 + box.z1) / 2), 0), depth - 1)
        for box in boxes
        if box.z0 is not None and box.z1 is not None
    }
    return tuple(sorted(middles))


@dataclass(frozen=True)
class SliceReduction:
    """What a reduction keeps of the slices of a store's volumes.

    Attributes:
        volumes: record id to what became of its slices.
        method, threshold: of the comparison.
        splits: only their volumes were looked at.
    """

    volumes: dict[str, KeptSlices]
    method: str
    threshold: float
    splits: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Slices that stay."""
        return sum(len(each.kept) for each in self.volumes.values())

    @property
    def slices(self) -> int:
        """Slices in all."""
        return self.kept + sum(len(each.dropped) for each in self.volumes.values())

    def to_json(self) -> dict[str, Any]:
        """Return the reduction as JSON values."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "splits": list(self.splits),
            "volumes": len(self.volumes),
            "slices": self.slices,
            "kept": self.kept,
            "evidence": sum(len(each.evidence) for each in self.volumes.values()),
            "notice": NOTICE,
        }

    def lines(self) -> list[str]:
        """Return the reduction for people."""
        shares = sorted(
            len(each.kept) / (len(each.kept) + len(each.dropped)) for each in self.volumes.values()
        )
        lines = [
            f"{self.slices} slices of {len(self.volumes)} volumes ({', '.join(self.splits)}) compared by "
            f"{self.method}, threshold {self.threshold:g}",
            f"{self.kept} slices stay, {self.slices - self.kept} can go",
        ]
        if shares:
            lines.append(
                f"of a volume, between {shares[0]:.0%} and {shares[-1]:.0%} stay, "
                f"{shares[len(shares) // 2]:.0%} in the middle"
            )
        marked = sum(len(each.evidence) for each in self.volumes.values())
        return [*lines, f"{marked} slices stay because a finding is marked in them", NOTICE]

    def table(self) -> str:
        """Return one row a slice as CSV: record, slice, outcome, the kept slice it is like, the measure."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("record_id", "slice", "outcome", "like", "measure"))
        for record_id, each in sorted(self.volumes.items()):
            rows = [(place, "kept", "", "") for place in each.kept if place not in each.evidence]
            rows += [(place, "evidence", "", "") for place in each.evidence]
            rows += [(like.slice, "dropped", str(like.kept), f"{like.measure:g}") for like in each.dropped]
            writer.writerows((record_id, *row) for row in sorted(rows))
        return stream.getvalue()


def reduce_store_slices(
    store: Store,
    *,
    method: str = "hash",
    threshold: float | None = None,
    splits: Sequence[str] = ("train",),
    low: float = -1000.0,
    high: float = 1000.0,
    vectors: VectorsOf | None = None,
    progress: Progress | None = None,
) -> SliceReduction:
    """Choose the slices to keep of every volume of a store; nothing is written.

    Args:
        store: its volumes are gone through one at a time.
        method: as for :func:`reduce_volume`.
        threshold: likewise.
        splits: volumes of other splits are left alone.
        low: lower end of the window.
        high: upper end of it.
        vectors: for ``embedding``, called with each record and its voxels.
        progress: called with volumes done, volumes in all, and the step.

    Raises:
        UsageError: no volume in these splits.
        ConfigError: see :func:`reduce_volume`.
        StoreError: a volume cannot be read.
    """
    records = list(_volumes(store.records, splits))
    if not records:
        raise UsageError(
            f"the store has no volume in {', '.join(splits)}.",
            hint=f"Splits are {', '.join(SPLITS)}; films have no slices.",
        )
    found: dict[str, KeptSlices] = {}
    for record in records:
        volume = store.pixels(record)
        found[record.record_id] = reduce_volume(
            volume,
            method=method,
            threshold=threshold,
            low=low,
            high=high,
            vectors=None if vectors is None else vectors(record, volume),
            evidence=evidence_slices(record.boxes, depth=record.shape[2]),
        )
        if progress is not None:
            progress(len(found), len(records), "comparing slices")
    return SliceReduction(
        found, method, THRESHOLDS[method] if threshold is None else float(threshold), tuple(splits)
    )


def _volumes(records: Iterable[Record], splits: Sequence[str]) -> Iterable[Record]:
    return (
        record
        for record in records
        if record.split in splits and len(record.shape) == 3 and not record.geometry.startswith("rejected")
    )
