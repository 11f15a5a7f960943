"""Every film and every report of the evaluated cases, embedded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medvl.evaluation.cases import Cases
from medvl.heads.grounding import ImageVectors, image_vectors
from medvl.modeldir import LoadedModel
from medvl.progress import Progress
from medvl.store import Store

__all__ = ["Embedded", "embed_cases"]

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
