"""The tensor contracts: what a step, an encoder and an objective take and return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = [
    "Batch",
    "ImageEncoder",
    "ImageFeatures",
    "LossTerms",
    "Objective",
    "Positives",
    "TextEncoder",
    "TextFeatures",
]


@dataclass(frozen=True)
class Batch:
    """One step's input; row i is one image and the report of its study.

    Attributes:
        images: normalised pixels.
        image_mask: True where a pixel comes from the film, False where it is padding.
        tokens: token ids.
        token_mask: 0 is padding, k >= 1 is a token of the k-th sentence, -1 is a real token
            outside any sentence ([CLS], [SEP]); so ``token_mask != 0`` is the attention mask.
        study: key of the study; equal keys are views of one study.
        report: key of the normalised report; equal keys say the same words.
        labels: 1 present, 0 absent, NaN unknown or uncertain; no column where nothing is labelled.
        image_present: False where the row repeats another image of its study for want of one of its own;
            None where every row has its own. Rows 2i and 2i + 1 are the two views of study i where the
            objective asks for two.
        sentence_parts: anatomical part that the k-th sentence speaks of, 0 for none; column k − 1.
        sentence_states: 1 where the k-th sentence says that all is normal, −1 where it says that something
            is not, 0 where it says neither; None where nobody read them for it.
        bank: unit vector of the row's report from a frozen text encoder, for positives by meaning.
        voxel_parts: number of the anatomical part that each voxel lies in, 0 for none; None without a
            segmentation.
    """

    images: Float[Tensor, "batch channels *spatial"]
    image_mask: Bool[Tensor, " batch *spatial"]
    tokens: Int[Tensor, "batch tokens"]
    token_mask: Int[Tensor, "batch tokens"]
    study: Int[Tensor, " batch"]
    report: Int[Tensor, " batch"]
    labels: Float[Tensor, "batch labels"]
    image_present: Bool[Tensor, " batch"] | None = None
    sentence_parts: Int[Tensor, "batch sentences"] | None = None
    sentence_states: Int[Tensor, "batch sentences"] | None = None
    bank: Float[Tensor, "batch bank"] | None = None
    voxel_parts: UInt8[Tensor, " batch *spatial"] | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """What an image encoder returns.

    Attributes:
        pooled: one vector an image.
        regions: one vector a region, row-major over ``region_grid``.
        region_grid: regions along each spatial axis; its product is the number of regions.
        region_mask: True where a region sees at least one pixel of the film.
        region_weights: attention of the pooled vector to each region (rows sum to 1), where the
            encoder has one.
        region_parts: True where a region lies in an anatomical part; None without a segmentation.
        present: see ``image_present`` of :class:`Batch`; None where every row has its own image.
    """

    pooled: Float[Tensor, "batch width"]
    regions: Float[Tensor, "batch regions region_width"]
    region_grid: tuple[int, ...]
    region_mask: Bool[Tensor, "batch regions"]
    region_weights: Float[Tensor, "batch regions"] | None = None
    region_parts: Bool[Tensor, "batch regions parts"] | None = None
    present: Bool[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder returns.

    Attributes:
        pooled: one vector a text.
        words: one vector a word (word pieces of a word are summed).
        word_mask: True where a word is real; special tokens and padding are not words.
        sentences: one vector a sentence.
        sentence_mask: True where a sentence is real.
        word_weights: attention of the pooled vector to each word (rows sum to 1), where the
            encoder has one.
        sentence_keys: equal where two sentences say the same words; without it no objective can
            tell that another report says the same sentence.
        sentence_parts: see :class:`Batch`; None where sentences were not assigned.
        sentence_states: see :class:`Batch`.
        findings: the ``labels`` of :class:`Batch`.
        attributes: one vector a finding, of its name in words; the same on every rank.
    """

    pooled: Float[Tensor, "batch width"]
    words: Float[Tensor, "batch words word_width"]
    word_mask: Bool[Tensor, "batch words"]
    sentences: Float[Tensor, "batch sentences word_width"]
    sentence_mask: Bool[Tensor, "batch sentences"]
    word_weights: Float[Tensor, "batch words"] | None = None
    sentence_keys: Int[Tensor, "batch sentences"] | None = None
    sentence_parts: Int[Tensor, "batch sentences"] | None = None
    sentence_states: Int[Tensor, "batch sentences"] | None = None
    findings: Float[Tensor, "batch labels"] | None = None
    attributes: Float[Tensor, "labels width"] | None = None


@dataclass(frozen=True)
class LossTerms:
    """The loss of a step and the terms that it sums; terms are detached and only for the log."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@runtime_checkable
class ImageEncoder(Protocol):
    """Turns images into pooled and region features.

    ``width`` and ``region_width`` are the sizes of the last axis; ``channels`` is what it eats.
    """

    width: int
    region_width: int
    channels: int

    def __call__(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> ImageFeatures:
        """Return pooled and region features."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Turns tokens into pooled, word and sentence features."""

    width: int
    word_width: int

    def __call__(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> TextFeatures:
        """Return pooled, word and sentence features."""
        ...


@runtime_checkable
class Positives(Protocol):
    """How far each text of a batch describes each image, computed a block at a time.

    ``P_ij`` in [0, 1] for text j and image i: 1 on the diagonal and for the same study or the same words,
    between 0 and 1 for similar findings, 0 for another case. A large batch never needs the whole matrix.
    """

    def __len__(self) -> int:
        """Return the size of the batch."""
        ...

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop`` of P."""
        ...

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop`` of P, transposed."""
        ...


@runtime_checkable
class Objective(Protocol):
    """An alignment loss: a function of gathered features and the positives.

    It knows no rank, no world size and no data set. ``needs_local`` says whether it trains the region and
    sentence projections; ``views`` how many images and texts of each study it compares: with 2, rows 2i and
    2i + 1 are the two views of study i. ``positives`` may be a whole matrix.
    """

    needs_local: bool
    views: int

    def __call__(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        positives: Float[Tensor, "batch batch"] | Positives,
    ) -> LossTerms:
        """Return the loss and its terms."""
        ...
