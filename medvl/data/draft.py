"""A batch before it is one: its key, a pair of it, and what a worker process sends of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from medvl.data.pictures import Pixels
from medvl.features import Batch

__all__ = ["Draft", "Embed", "Encode", "Key", "OfSentences", "Pair"]

Key = tuple[int, int]
"""Epoch and item: all that decides what a training sample looks like, besides the seed. An item is a record,
or with two views a study."""

Encode = Callable[
    [Sequence[Sequence[str]]],
    tuple[Int[np.ndarray, "batch tokens"], Int[np.ndarray, "batch tokens"]],
]
"""Lists of sentences to token ids and token mask (see :class:`medvl.features.Batch`)."""

OfSentences = Callable[[Sequence[str]], Int[np.ndarray, " sentences"]]
"""The sentences of a report to a number each: its anatomical part, or what it says of it."""

Embed = Callable[[Sequence[Sequence[str]]], Float[np.ndarray, "reports width"]]
"""Lists of sentences to one unit vector each, of a frozen text encoder."""


@dataclass(frozen=True)
class Pair:
    """One record ready for a batch; the pixels are normalised, the sentences still words."""

    image: Float[np.ndarray, " channels *spatial"]
    image_mask: Bool[np.ndarray, " *spatial"]
    sentences: tuple[str, ...]
    study: int
    report: int
    labels: Float[np.ndarray, " labels"]
    image_present: bool = True


@dataclass(frozen=True)
class Draft:
    """A batch but for its pictures, as NumPy arrays: the little that a worker process sends.

    Attributes:
        tokens, token_mask, study, report, labels, image_present, sentence_parts, sentence_states, bank: as in
            :class:`medvl.features.Batch`.
    """

    tokens: Int[np.ndarray, "batch tokens"]
    token_mask: Int[np.ndarray, "batch tokens"]
    study: Int[np.ndarray, " batch"]
    report: Int[np.ndarray, " batch"]
    labels: Float[np.ndarray, "batch labels"]
    image_present: Bool[np.ndarray, " batch"] | None = None
    sentence_parts: Int[np.ndarray, "batch sentences"] | None = None
    sentence_states: Int[np.ndarray, "batch sentences"] | None = None
    bank: Float[np.ndarray, "batch bank"] | None = None

    def finish(self, pixels: Pixels) -> Batch:
        """Return the batch of this draft and its pictures, without a copy."""
        values = {name: torch.from_numpy(value) for name, value in vars(self).items() if value is not None}
        return Batch(
            images=torch.from_numpy(pixels.images),
            image_mask=torch.from_numpy(pixels.mask),
            voxel_parts=None if pixels.parts is None else torch.from_numpy(pixels.parts),
            **values,
        )
