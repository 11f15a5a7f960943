"""A record store as pairs of image and report: the map-style data set of one split."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch.utils.data import Dataset

from medvl.data.augment import Augment, draw
from medvl.errors import UsageError
from medvl.features import Batch
from medvl.records import IS_PRESENT, Record
from medvl.specs import InputSpec
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["Draft", "Encode", "Key", "Pair", "PairDataset", "integer_key", "label_names"]

log = logging.getLogger(__name__)

_ROOM = 2**20
"""Bytes of the memory that stored arrays are read into again and again; larger ones take their own."""

Key = tuple[int, int]
"""Epoch and row: all that decides what a training sample looks like, besides the seed."""

Encode = Callable[
    [Sequence[Sequence[str]]],
    tuple[Int[np.ndarray, "batch tokens"], Int[np.ndarray, "batch tokens"]],
]
"""Lists of sentences to token ids and token mask (see :class:`medvl.features.Batch`)."""


@dataclass(frozen=True)
class Pair:
    """One record ready for a batch; the pixels are normalised, the sentences still words."""

    image: Float[np.ndarray, "channels rows columns"]
    image_mask: Bool[np.ndarray, "rows columns"]
    sentences: tuple[str, ...]
    study: int
    report: int
    labels: Float[np.ndarray, " labels"]


@dataclass(frozen=True)
class Draft:
    """A batch but for its pictures, as NumPy arrays: the little that a worker process sends.

    Attributes:
        tokens, token_mask, study, report, labels: as in :class:`medvl.features.Batch`.
    """

    tokens: Int[np.ndarray, "batch tokens"]
    token_mask: Int[np.ndarray, "batch tokens"]
    study: Int[np.ndarray, " batch"]
    report: Int[np.ndarray, " batch"]
    labels: Float[np.ndarray, "batch labels"]


class PairDataset(Dataset[Pair]):
    """Images of one split with the sentences of their reports.

    Records without a sentence in ``view`` and records whose geometry was rejected are left out and
    counted in ``skipped``. The letterboxed 8-bit pictures are held in memory when they fit into ``cache_mb``.
    A sample is a function of ``(seed, epoch, record)``: neither the order of reading nor the number of
    workers changes it.

    Args:
        store: an open store.
        split: ``"train"``, ``"val"`` or ``"test"``.
        input: how a stored array becomes the tensor.
        view: which sentences are read, ``"retrieval"``, ``"generation"`` or ``"rewritten"``. A record that
            was not rewritten has no text in the last one, whatever the other two hold.
        augment: random changes of the picture; None for none.
        order: ``"report"`` keeps the order of the sentences, ``"shuffled"`` draws another one each epoch.
        most: sentences of a report that are read at a time, drawn anew each epoch; None for all. A sentence
            is drawn with a weight of 1 / number of reports that say it, figures aside: what everybody's
            report says tells no case from another. Few sentences also make texts that look like prompts.
        seed: of augmentation, sentence order and choice.
        split_seed: splits patients anew with :func:`medvl.splits.split_of`; None keeps the store's splits.
        cache_mb: memory for pictures, in MiB.

    Raises:
        UsageError: an unknown split, or nothing to read in it.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        input: InputSpec,
        view: Literal["retrieval", "generation", "rewritten"] = "retrieval",
        augment: Augment | None = None,
        order: Literal["report", "shuffled"] = "report",
        most: int | None = None,
        seed: int = 0,
        split_seed: int | None = None,
        cache_mb: int = 2048,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"unknown split '{split}'.", hint=f"Allowed: {', '.join(SPLITS)}.")
        self.store, self.split, self.input, self.view = store, split, input, view
        self.augment, self.order, self.most, self.seed = augment, order, most, seed
        chosen = [
            record
            for record in store.records
            if (record.split if split_seed is None else split_of(record.patient_id, seed=split_seed)) == split
        ]
        verdicts = [_verdict(record, view) for record in chosen]
        self.records: tuple[Record, ...] = tuple(
            record for record, why in zip(chosen, verdicts, strict=True) if not why
        )
        self.skipped: dict[str, int] = dict(Counter(why for why in verdicts if why))
        if not self.records:
            raise UsageError(
                f"the split '{split}' has no image with a report: {len(chosen)} records, "
                f"skipped {self.skipped}.",
                hint="Prepare more studies, or give another data.split_seed.",
            )
        self.label_names = label_names(store)
        self.study = np.array([integer_key(record.study_id) for record in self.records], np.int64)
        self.report = np.array([report_key(getattr(record, view)) for record in self.records], np.int64)
        self.labels = np.array(
            [[_state(record, name) for name in self.label_names] for record in self.records], np.float32
        ).reshape(len(self.records), len(self.label_names))
        self._canvas: UInt8[np.ndarray, "records rows columns"] | None = None
        self._mask: Bool[np.ndarray, "records rows columns"] | None = None
        if 2 * len(self.records) * input.size_px[0] * input.size_px[1] <= cache_mb * 2**20:
            canvas = np.empty((len(self.records), *input.size_px), np.uint8)
            mask = np.empty(canvas.shape, bool)
            room = self._room()
            for row in range(len(canvas)):
                canvas[row] = self._picture(row, mask[row], room)
            self._canvas, self._mask = canvas, mask
        if self.skipped:
            log.info("split %s: %d records, skipped %s", split, len(self.records), self.skipped)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.records)

    @property
    def cached(self) -> bool:
        """Whether all pictures are in memory, so that worker processes would not help."""
        return self._canvas is not None

    def __getitem__(self, key: Key | int) -> Pair:
        """Return one pair; a bare row number means epoch 0."""
        return self.pairs([key if isinstance(key, tuple) else (0, key)])[0]

    def pairs(self, keys: Sequence[Key]) -> list[Pair]:
        """Return the pairs of ``keys``, augmented together."""
        images, mask = self.space(len(keys))
        self.paint(keys, images=images, mask=mask)
        return [
            Pair(
                image=images[i],
                image_mask=mask[i],
                sentences=self.sentences(key),
                study=int(self.study[key[1]]),
                report=int(self.report[key[1]]),
                labels=self.labels[key[1]],
            )
            for i, key in enumerate(keys)
        ]

    def space(
        self, pictures: int
    ) -> tuple[Float[np.ndarray, "batch channels rows columns"], Bool[np.ndarray, "batch rows columns"]]:
        """Return new room for so many pictures and their masks."""
        return (
            np.empty((pictures, self.input.channels, *self.input.size_px), np.float32),
            np.empty((pictures, *self.input.size_px), bool),
        )

    def paint(
        self,
        keys: Sequence[Key],
        *,
        images: Float[np.ndarray, "batch channels rows columns"],
        mask: Bool[np.ndarray, "batch rows columns"],
    ) -> None:
        """Write the pictures of ``keys``, augmented together and normalised, and their masks."""
        rows = [row for _, row in keys]
        room = self._room()
        if self.augment is None:
            for i, row in enumerate(rows):
                self._normalise(self._picture(row, mask[i], room), images[i])
            return
        canvas = np.stack([self._picture(row, mask[i], room) for i, row in enumerate(rows)])
        streams = [self._stream("pixels", key) for key in keys]
        moved, mask[...] = self.augment(canvas, mask, streams=streams)
        for film, image in zip(moved, images, strict=True):
            image[...] = self.input.normalise(film)

    def draft(self, keys: Sequence[Key], *, encode: Encode) -> Draft:
        """Return all of a batch but its pictures; ``encode`` turns the sentences into tokens."""
        tokens, token_mask = encode([self.sentences(key) for key in keys])
        rows = [row for _, row in keys]
        return Draft(tokens, token_mask, self.study[rows], self.report[rows], self.labels[rows])

    @staticmethod
    def finish(
        draft: Draft,
        *,
        images: Float[np.ndarray, "batch channels rows columns"],
        mask: Bool[np.ndarray, "batch rows columns"],
    ) -> Batch:
        """Return the batch of a draft and its pictures, without a copy."""
        return Batch(
            images=torch.from_numpy(images),
            image_mask=torch.from_numpy(mask),
            tokens=torch.from_numpy(draft.tokens),
            token_mask=torch.from_numpy(draft.token_mask),
            study=torch.from_numpy(draft.study),
            report=torch.from_numpy(draft.report),
            labels=torch.from_numpy(draft.labels),
        )

    def batch(self, keys: Sequence[Key], *, encode: Encode) -> Batch:
        """Return the batch of ``keys``, augmented together; ``encode`` turns their sentences into tokens."""
        images, mask = self.space(len(keys))
        self.paint(keys, images=images, mask=mask)
        return self.finish(self.draft(keys, encode=encode), images=images, mask=mask)

    @functools.cached_property
    def _greys(self) -> Float[np.ndarray, "channels 65536"]:
        """What each two neighbouring grey values become, as 8 bytes: one look-up writes two pixels."""
        grey = self.input.normalise(np.arange(256, dtype=np.uint8)[None])[:, 0]
        both = np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
        return np.ascontiguousarray(grey[:, both]).view(np.float64)[..., 0]

    def _normalise(
        self, canvas: UInt8[np.ndarray, "rows columns"], image: Float[np.ndarray, "channels rows columns"]
    ) -> None:
        """Write the bits of :meth:`medvl.specs.InputSpec.normalise`; looking them up takes half the time."""
        if canvas.size % 2:
            image[...] = self.input.normalise(canvas)
            return
        pairs = canvas.reshape(-1).view(np.uint16)
        for values, channel in zip(self._greys, image, strict=True):
            out = channel.reshape(-1).view(np.float64)
            np.take(values, pairs, out=out, mode="clip")  # "raise" would buffer the output

    def sentences(self, key: Key) -> tuple[str, ...]:
        """Return the sentences of one row that this epoch reads, in its order."""
        kept: tuple[str, ...] = getattr(self.records[key[1]], self.view)
        if self.order == "report" and self.most is None:
            return kept
        stream = self._stream("sentences", key)
        if self.most is None:
            return tuple(kept[i] for i in stream.permutation(len(kept)))
        # Gumbel noise on the log weights: the largest are a draw without replacement (Vieira 2014).
        said = np.array([self._reports_that_say[_figures_aside(sentence)] for sentence in kept], float)
        drawn = np.argsort(np.log(said) - stream.gumbel(size=len(kept)), kind="stable")[: self.most]
        return tuple(kept[i] for i in (sorted(drawn) if self.order == "report" else drawn))

    @functools.cached_property
    def _reports_that_say(self) -> Counter[str]:
        views = (getattr(record, self.view) for record in self.records)
        return Counter(said for view in views for said in {_figures_aside(sentence) for sentence in view})

    def _stream(self, what: str, key: Key) -> np.random.Generator:
        return draw(self.seed, what, key[0], self.records[key[1]].record_id)

    def _room(self) -> UInt8[np.ndarray, " bytes"]:
        """Return memory that stored arrays are read into, one after the other."""
        return np.empty(_ROOM if self._canvas is None else 0, np.uint8)

    def _picture(
        self, row: int, mask: Bool[np.ndarray, "rows columns"], room: UInt8[np.ndarray, " bytes"]
    ) -> UInt8[np.ndarray, "rows columns"]:
        """Return the letterboxed picture of a row and write its mask."""
        if self._canvas is not None and self._mask is not None:
            mask[...] = self._mask[row]
            return self._canvas[row]
        canvas = np.zeros(self.input.size_px, np.uint8)
        mask[...] = False
        stored = self.store.pixels(self.records[row], room=room)
        self.input.letterbox_into(stored, canvas=canvas, mask=mask)
        return canvas


def _figures_aside(sentence: str) -> str:
    return re.sub(r"\d+([.,]\d+)?", "#", sentence.casefold())


def label_names(store: Store) -> tuple[str, ...]:
    """Return every finding that a record of the store is labelled with, in alphabetical order."""
    return tuple(sorted({name for record in store.records for name in record.labels}))


def integer_key(text: str) -> int:
    """Return a 63-bit key of ``text``; equal texts have equal keys.

    Examples:
        >>> integer_key("a") == integer_key("a"), integer_key("a") == integer_key("b")
        (True, False)
    """
    return (
        int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1
    )


def report_key(sentences: Sequence[str]) -> int:
    """Return the key that two reports share when their sentences are the same, in whatever order."""
    return integer_key("\x1f".join(sorted(" ".join(sentence.casefold().split()) for sentence in sentences)))


def _verdict(record: Record, view: str) -> str:
    if record.geometry.startswith("rejected"):
        return record.geometry
    return "" if any(sentence.strip() for sentence in getattr(record, view)) else "no text"


def _state(record: Record, name: str) -> float:
    return float(IS_PRESENT.get(record.labels.get(name, ""), np.nan))
