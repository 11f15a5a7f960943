"""Every film and every report of the evaluated cases, embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from medvl.encoders.image import build_image_encoder
from medvl.encoders.text import build_text_encoder
from medvl.evaluation.cases import Cases
from medvl.heads.grounding import ImageVectors, image_vectors
from medvl.modeldir import LoadedModel
from medvl.progress import Progress
from medvl.records import Record
from medvl.store import Store
from medvl.training.recipe import Recipe

__all__ = ["Embedded", "embed_cases", "tower_features"]

_BATCH = 32


@dataclass(frozen=True)
class Embedded:
    """The vectors of the cases.

    Attributes:
        images: one row per image of the cases.
        texts: one row per text of the cases; equal words have equal rows, bit for bit.
        regions: by row of ``images``, the regions of films that have boxes.
    """

    images: Float[np.ndarray, "images dim"]
    texts: Float[np.ndarray, "texts dim"]
    regions: dict[int, ImageVectors]


def embed_cases(
    loaded: LoadedModel, store: Store, cases: Cases, *, progress: Progress | None = None
) -> Embedded:
    """Embed all films in batches, and each distinct report once.

    Args:
        loaded: the model.
        store: where the pixels are.
        cases: what to embed.
        progress: called as batches are done.
    """
    pooled: list[Float[np.ndarray, "films dim"]] = []
    regions: dict[int, ImageVectors] = {}
    for start in range(0, len(cases.images), _BATCH):
        chunk = cases.images[start : start + _BATCH]
        found = image_vectors(loaded, [store.pixels(record) for record in chunk])
        pooled.append(found.pooled)
        for row, record in enumerate(chunk):
            if record.boxes:
                one = slice(row, row + 1)
                regions[start + row] = ImageVectors(
                    found.pooled[one], found.regions[one], found.grid, found.mask[one]
                )
        if progress is not None:
            progress(start + len(chunk), len(cases.images), "embedding films")
    distinct = sorted({text.sentences for text in cases.texts})
    place = {sentences: row for row, sentences in enumerate(distinct)}
    vectors = loaded.embed_texts([list(sentences) for sentences in distinct])
    rows = np.asarray([place[text.sentences] for text in cases.texts], np.int64)
    return Embedded(np.concatenate(pooled), vectors[rows], regions)


def tower_features(
    loaded: LoadedModel,
    recipe: Recipe,
    store: Store,
    records: Sequence[Record],
    texts: Sequence[Sequence[str]],
    *,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "records image_width"], Float[np.ndarray, "texts text_width"]]:
    """Return pooled features of the towers as the recipe builds them: pretrained where they are, unaligned.

    No adapter, no projection and no step of training is in them. A tower without pretrained weights has
    random ones, drawn with seed 0.

    Args:
        loaded: the trained model; its specs and tokeniser are used, not its weights.
        recipe: names and options of the towers.
        store: where the pixels are.
        records: films.
        texts: reports as lists of sentences.
        progress: called as batches are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = build_image_encoder(recipe.image.name, recipe.image.options).eval()
        text = build_text_encoder(recipe.text.name, recipe.text.options, loaded.tokeniser).eval()

    def images(chunk: Sequence[Any]) -> torch.Tensor:
        pixels, masks = loaded.image_tensors([store.pixels(record) for record in chunk])
        return image(pixels.cpu(), masks.cpu()).pooled

    def reports(chunk: Sequence[Any]) -> torch.Tensor:
        tokens, mask = loaded.text_tensors([list(sentences) for sentences in chunk])
        return text(tokens.cpu(), mask.cpu()).pooled

    return (
        _in_batches(images, records, progress, "ridge baseline: films"),
        _in_batches(reports, texts, progress, "ridge baseline: reports"),
    )


@torch.inference_mode()
def _in_batches(
    encode: Callable[[Sequence[Any]], torch.Tensor],
    items: Sequence[Any],
    progress: Progress | None,
    message: str,
) -> Shaped[np.ndarray, "items width"]:
    parts = []
    for start in range(0, len(items), _BATCH):
        chunk = items[start : start + _BATCH]
        parts.append(encode(chunk).float().numpy())
        if progress is not None:
            progress(start + len(chunk), len(items), message)
    return np.concatenate(parts)
