"""A record store as pairs of image and report: the map-style data set of one split."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from medvl.data.augment import Augment, VolumeAugment, draw
from medvl.data.draft import Draft, Embed, Encode, Key, OfSentences, Pair
from medvl.data.pictures import Films, Pictures, Pixels
from medvl.data.views import Look, two_images, two_texts
from medvl.data.volumes import Volumes
from medvl.errors import ConfigError, UsageError
from medvl.features import Batch
from medvl.records import IS_PRESENT, Record, Report
from medvl.specs import InputSpec, VolumeInput, VolumeSpec
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["PairDataset", "integer_key", "label_names"]

log = logging.getLogger(__name__)


class PairDataset(Dataset[Pair]):
    """Images of one split with the sentences of their reports.

    Records without a sentence in ``view`` and records whose geometry was rejected are left out and
    counted in ``skipped``. Pictures are held in memory when they fit into ``cache_mb``: films letterboxed in
    8 bits (:class:`medvl.data.pictures.Films`), volumes in HU (:class:`medvl.data.volumes.Volumes`).
    A sample is a function of ``(seed, epoch, record)``: neither the order of reading nor the number of
    workers changes it.

    With two views an item is a study, and a batch of B studies has 2B rows: rows 2i and 2i + 1 show the
    images of :func:`medvl.data.views.two_images` and the words of :func:`medvl.data.views.two_texts`, both
    drawn anew each epoch. A study with a single image shows it twice, augmented differently, and
    ``image_present`` is False for the second. Both rows have the key of the whole report.

    Args:
        store: an open store.
        split: ``"train"``, ``"val"`` or ``"test"``.
        input: how a stored array becomes the tensor; its kind says whether the store holds films or volumes.
        view: which sentences are read, ``"retrieval"``, ``"generation"`` or ``"rewritten"``. A record that
            was not rewritten has no text in the last one, whatever the other two hold.
        augment: random changes of the picture, of the kind that fits ``input``; None for none.
        place: which part of a volume larger than the tensor is shown where ``input`` crops: the middle, or
            one at random, another each epoch. Films are shown whole.
        order: ``"report"`` keeps the order of the sentences, ``"shuffled"`` draws another one each epoch.
        most: sentences of a report that are read at a time, drawn anew each epoch; None for all. A sentence
            is drawn with a weight of 1 / number of reports that say it, figures aside: what everybody's
            report says tells no case from another. Few sentences also make texts that look like prompts.
        seed: of augmentation, sentence order and choice.
        split_seed: splits patients anew with :func:`medvl.splits.split_of`; None keeps the store's splits.
        cache_mb: memory for pictures, in MiB.
        views: images and texts of each study in a batch, 1 or 2.
        parts: fills ``sentence_parts`` of a batch, and ``voxel_parts`` where records have them; None leaves
            both out.
        states: fills ``sentence_states`` of a batch; None leaves it out.
        bank: fills ``bank`` of a batch; called once, with all reports of the split. None leaves it out.

    Raises:
        ConfigError: ``input`` is for films and the store holds volumes, or the other way round.
        UsageError: an unknown split, another number of views, or nothing to read in the split.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        input: InputSpec | VolumeInput,
        view: Literal["retrieval", "generation", "rewritten"] = "retrieval",
        augment: Augment | VolumeAugment | None = None,
        place: Literal["middle", "random"] = "middle",
        order: Literal["report", "shuffled"] = "report",
        most: int | None = None,
        seed: int = 0,
        split_seed: int | None = None,
        cache_mb: int = 2048,
        views: int = 1,
        parts: OfSentences | None = None,
        states: OfSentences | None = None,
        bank: Embed | None = None,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"unknown split '{split}'.", hint=f"Allowed: {', '.join(SPLITS)}.")
        if views not in (1, 2):
            raise UsageError(f"a batch cannot have {views} views of a study.", hint="Allowed: 1, 2.")
        self.store, self.split, self.input, self.view = store, split, input, view
        self.views, self.parts, self.states = views, parts, states
        self.order, self.most, self.seed = order, most, seed
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
        self.bank = None if bank is None else bank([getattr(record, view) for record in self.records])
        by_study: dict[int, list[int]] = {}
        for row, study in enumerate(self.study.tolist() if views == 2 else range(len(self.records))):
            by_study.setdefault(study, []).append(row)
        self._items = list(by_study.values())
        self.pictures = _pictures(
            store,
            self.records,
            input=input,
            augment=augment,
            place=place,
            parts=parts is not None,
            cache_mb=cache_mb,
        )
        if self.skipped:
            log.info("split %s: %d records, skipped %s", split, len(self.records), self.skipped)

    def __len__(self) -> int:
        """Return the number of items that an epoch visits: records, or studies with two views."""
        return len(self._items)

    @property
    def cached(self) -> bool:
        """Whether all pictures are in memory, so that worker processes would not help."""
        return self.pictures.cached

    def __getitem__(self, key: Key | int) -> Pair:
        """Return one pair, of two views the first; a bare row number means epoch 0."""
        return self.pairs([key if isinstance(key, tuple) else (0, key)])[0]

    def pairs(self, keys: Sequence[Key]) -> list[Pair]:
        """Return the pairs of ``keys``, augmented together; two for each with two views."""
        pixels = self.space(len(keys))
        self.paint(keys, pixels)
        return [
            Pair(
                image=pixels.images[i],
                image_mask=pixels.mask[i],
                sentences=self._sentences(look),
                study=int(self.study[look.image]),
                report=int(self.report[look.text]),
                labels=self.labels[look.image],
                image_present=look.own,
            )
            for i, look in enumerate(self.looks(keys))
        ]

    def looks(self, keys: Sequence[Key]) -> list[Look]:
        """Return what each row of a batch of ``keys`` shows."""
        if self.views == 1:
            return [Look(epoch, row, row) for epoch, row in keys]
        looks = []
        for epoch, item in keys:
            rows = self._items[item]
            stream = draw(self.seed, "views", epoch, self.records[rows[0]].study_id)
            first, second = two_images([self.records[row].view for row in rows], stream)
            looks += [
                Look(epoch, rows[first], rows[first]),
                Look(epoch, rows[second], rows[first], view=1, own=first != second),
            ]
        return looks

    def space(self, items: int) -> Pixels:
        """Return new room for the pictures of so many items."""
        return Pixels.empty(
            self.views * items,
            channels=self.input.channels,
            size_px=self.input.size_px,
            parts=self.pictures.has_parts,
        )

    def paint(self, keys: Sequence[Key], pixels: Pixels) -> None:
        """Write the pictures of ``keys``, augmented and normalised, and their masks."""
        self.pictures.paint(
            self.looks(keys), pixels, stream=lambda look: self._stream("pixels", look, look.image)
        )

    def draft(self, keys: Sequence[Key], *, encode: Encode) -> Draft:
        """Return all of a batch but its pictures; ``encode`` turns the sentences into tokens."""
        looks = self.looks(keys)
        texts = [self._sentences(look) for look in looks]
        tokens, token_mask = encode(texts)
        shown, read = [look.image for look in looks], [look.text for look in looks]
        return Draft(
            tokens,
            token_mask,
            self.study[shown],
            self.report[read],
            self.labels[shown],
            image_present=np.array([look.own for look in looks]) if self.views == 2 else None,
            sentence_parts=_of_sentences(self.parts, texts, token_mask),
            sentence_states=_of_sentences(self.states, texts, token_mask),
            bank=None if self.bank is None else self.bank[read],
        )

    def batch(self, keys: Sequence[Key], *, encode: Encode) -> Batch:
        """Return the batch of ``keys``, augmented together; ``encode`` turns their sentences into tokens."""
        pixels = self.space(len(keys))
        self.paint(keys, pixels)
        return self.draft(keys, encode=encode).finish(pixels)

    def _sentences(self, look: Look) -> tuple[str, ...]:
        """Return the sentences that a row reads, in its order."""
        kept: tuple[str, ...] = getattr(self.records[look.text], self.view)
        if self.views == 2:
            halves = draw(self.seed, "halves", look.epoch, self.records[look.text].record_id)
            kept = tuple(kept[i] for i in two_texts(self._sections(look.text), halves)[look.view])
        if self.order == "report" and self.most is None:
            return kept
        stream = self._stream("sentences", look, look.text)
        if self.most is None:
            return tuple(kept[i] for i in stream.permutation(len(kept)))
        # Gumbel noise on the log weights: the largest are a draw without replacement (Vieira 2014).
        said = np.array([self._reports_that_say[_figures_aside(sentence)] for sentence in kept], float)
        drawn = np.argsort(np.log(said) - stream.gumbel(size=len(kept)), kind="stable")[: self.most]
        return tuple(kept[i] for i in (sorted(drawn) if self.order == "report" else drawn))

    def _sections(self, row: int) -> list[str]:
        """Return the section of each sentence of the view, "" where it is not known."""
        record = self.records[row]
        said: tuple[str, ...] = getattr(record, self.view)
        if self.view != "rewritten":
            report = Report(record.report, record.sections, record.sentences)
            sections = [sentence.section for sentence in self.store.report_spec.kept(report, self.view)]
            if len(sections) == len(said):  # or the record was not written by this spec
                return sections
        return [""] * len(said)

    @functools.cached_property
    def _reports_that_say(self) -> Counter[str]:
        views = (getattr(record, self.view) for record in self.records)
        return Counter(said for view in views for said in {_figures_aside(sentence) for sentence in view})

    def _stream(self, what: str, look: Look, row: int) -> np.random.Generator:
        view = (look.view,) if look.view else ()
        return draw(self.seed, what, look.epoch, self.records[row].record_id, *view)


def _of_sentences(
    read: OfSentences | None, texts: Sequence[Sequence[str]], token_mask: Int[np.ndarray, "batch tokens"]
) -> Int[np.ndarray, "batch sentences"] | None:
    if read is None:
        return None
    # As many columns as a text encoder has sentences: what the tokenizer cut off is not there.
    found = np.zeros((len(texts), max(1, int(token_mask.max(initial=0)))), np.int64)
    for row, text in zip(found, texts, strict=True):
        kept = text[: len(row)]
        row[: len(kept)] = read(kept)
    return found


def _pictures(
    store: Store,
    records: Sequence[Record],
    *,
    input: InputSpec | VolumeInput,
    augment: Augment | VolumeAugment | None,
    place: Literal["middle", "random"],
    parts: bool,
    cache_mb: int,
) -> Pictures:
    """Return what the spec of the store and the input agree on: films or volumes."""
    held = "volumes" if isinstance(store.pixel_spec, VolumeSpec) else "films"
    meant = "volumes" if isinstance(input, VolumeInput) else "films"
    if held != meant:
        raise ConfigError(
            f"the store holds {held}, but the input is for {meant}.",
            hint="Set input.kind to volume for a CT store, and leave it out for films.",
        )
    if isinstance(input, VolumeInput):
        if isinstance(augment, Augment):
            raise ConfigError("an augmentation of films was given for volumes.", hint="Give a VolumeAugment.")
        return Volumes(
            store, records, input=input, augment=augment, place=place, parts=parts, cache_mb=cache_mb
        )
    if isinstance(augment, VolumeAugment):
        raise ConfigError("an augmentation of volumes was given for films.", hint="Give an Augment.")
    return Films(store, records, input=input, augment=augment, cache_mb=cache_mb)


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
