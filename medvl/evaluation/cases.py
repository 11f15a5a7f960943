"""Which records are evaluated, which are left out and why, and what they are equal in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from medvl.errors import UsageError, nearest
from medvl.evaluation.retrieval import Keys
from medvl.records import Record
from medvl.specs import text_hash
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["NOUNS", "Cases", "TextItem", "choose_cases"]

NOUNS = {"cxr": "film", "ct": "volume"}
"""What an image of each modality is called in tables and pages."""


@dataclass(frozen=True)
class TextItem:
    """One report of one study; two images of the study share it."""

    study_id: str
    patient_id: str
    sentences: tuple[str, ...]
    labels: Mapping[str, str]

    @property
    def words(self) -> str:
        """The report in one line."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Cases:
    """The records of one split, ready to be embedded.

    Attributes:
        images: records with a usable film.
        texts: the distinct reports of their studies.
        train: records of the training split with a film and a text, for baselines; never evaluated.
        left_out: reason to number of records.
    """

    images: tuple[Record, ...]
    texts: tuple[TextItem, ...]
    train: tuple[Record, ...]
    left_out: dict[str, int]

    @property
    def with_text(self) -> tuple[int, ...]:
        """Rows of ``images`` whose study has a report."""
        told = {text.study_id for text in self.texts}
        return tuple(row for row, record in enumerate(self.images) if record.study_id in told)

    def keys(self) -> tuple[Keys, Keys]:
        """Return the keys of the images that have a report, and of the texts, in one numbering."""
        images = [self.images[row] for row in self.with_text]
        words = {text.study_id: text.words for text in reversed(self.texts)}
        rows = len(images)
        study = _codes([r.study_id for r in images] + [t.study_id for t in self.texts])
        text = _codes(
            [text_hash(words[r.study_id]) for r in images] + [text_hash(t.words) for t in self.texts]
        )
        label = _codes([_states(r.labels) for r in images] + [_states(t.labels) for t in self.texts])
        return (
            Keys(study[:rows], text[:rows], label[:rows]),
            Keys(study[rows:], text[rows:], label[rows:]),
        )


def choose_cases(store: Store, *, split: str, split_seed: int | None, view: str = "retrieval") -> Cases:
    """Return the records of ``split``; no patient and no film of the training split is among them.

    Args:
        store: the records.
        split: ``val`` or ``test``; the training split is never evaluated.
        split_seed: as the model was trained; None takes the store's own splits.
        view: which sentences are the text of a record.

    Raises:
        UsageError: ``split`` is ``train`` or unknown, a patient is in both splits, or nothing is left.
    """
    if split not in SPLITS or split == "train":
        raise UsageError(
            f"the split '{split}' cannot be evaluated.",
            hint=nearest(split, [s for s in SPLITS if s != "train"]),
        )

    def split_named(record: Record) -> str:
        return record.split if split_seed is None else split_of(record.patient_id, seed=split_seed)

    train = [record for record in store.records if split_named(record) == "train"]
    chosen = [record for record in store.records if split_named(record) == split]
    shared = {record.patient_id for record in train} & {record.patient_id for record in chosen}
    if shared:
        raise UsageError(
            f"{len(shared)} patients are in '{split}' and in 'train'; the figures would mean nothing.",
            hint="Split by patient: prepare the store again, or give data.split_seed when training.",
        )
    seen = {record.pixel_hash for record in train}
    noun = NOUNS.get(str(store.manifest.get("modality")), "film")
    left_out: Counter[str] = Counter()
    images: list[Record] = []
    for record in chosen:
        if record.geometry.startswith("rejected"):
            left_out[f"{noun} {record.geometry}"] += 1
        elif record.pixel_hash and record.pixel_hash in seen:
            left_out[f"{noun} equal to one of the training split"] += 1
        else:
            images.append(record)
    texts = _texts(images, view)
    told = {text.study_id for text in texts}
    left_out[f"{noun} without a report (out of retrieval only)"] = sum(r.study_id not in told for r in images)
    if not texts and images:
        raise UsageError(
            f"no record of the split '{split}' has a report.", hint="Prepare it with a report table."
        )
    if not images:
        why = "".join(f", {n} left out: {reason}" for reason, n in left_out.items() if n)
        raise UsageError(
            f"the split '{split}' holds no usable {noun}: {len(chosen)} records{why}.",
            hint="Prepare more patients, or evaluate another split.",
        )
    usable = tuple(r for r in train if not r.geometry.startswith("rejected") and any(getattr(r, view)))
    return Cases(tuple(images), texts, usable, {why: n for why, n in left_out.items() if n})


def _texts(images: Sequence[Record], view: str) -> tuple[TextItem, ...]:
    items: dict[tuple[str, str], TextItem] = {}
    for record in images:
        sentences: tuple[str, ...] = tuple(line for line in getattr(record, view) if line.strip())
        if sentences:
            item = TextItem(record.study_id, record.patient_id, sentences, record.labels)
            items.setdefault((record.study_id, text_hash(item.words)), item)
    return tuple(items.values())


def _states(labels: Mapping[str, str]) -> str:
    """Return the set of findings as text; "" where nothing is labelled."""
    if not labels:
        return ""
    return "labelled:" + ",".join(
        f"{name}={state}" for name, state in sorted(labels.items()) if state != "absent"
    )


def _codes(names: Sequence[str]) -> Int[np.ndarray, " items"]:
    """Number equal names equally; "" becomes -1."""
    _, codes = np.unique(np.asarray(names), return_inverse=True)
    return np.where(np.asarray(names) == "", -1, codes).astype(np.int64)
