"""Every film or volume and every report of the evaluated cases, embedded once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from medvl.evaluation.cases import Cases
from medvl.evaluation.organs import PartVectors, part_vectors
from medvl.heads.grounding import ImageVectors, image_vectors, volume_vectors
from medvl.modeldir import LoadedModel
from medvl.objectives.parts import OrganPool
from medvl.progress import Progress
from medvl.records import Record
from medvl.sliding import part_cells
from medvl.specs import VolumeSpec
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
        parts: by row of ``images``, the parts of volumes that have a segmentation.
    """

    images: Float[np.ndarray, "images dim"]
    texts: Float[np.ndarray, "texts dim"]
    regions: dict[int, ImageVectors]
    parts: dict[int, PartVectors] = field(default_factory=dict)


def embed_cases(
    loaded: LoadedModel,
    store: Store,
    cases: Cases,
    *,
    pool: OrganPool | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed all films or volumes in batches, and each distinct report once.

    Args:
        loaded: the model.
        store: where the pixels are.
        cases: what to embed.
        pool: queries of the parts of volumes, where the objective learned them.
        progress: called as batches are done.
    """
    distinct = sorted({text.sentences for text in cases.texts})
    place = {sentences: row for row, sentences in enumerate(distinct)}
    vectors = loaded.embed_texts([list(sentences) for sentences in distinct])
    rows = np.asarray([place[text.sentences] for text in cases.texts], np.int64)
    if isinstance(loaded.pixels, VolumeSpec):
        return _with_volumes(loaded, store, cases, vectors[rows], pool, progress)
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
    return Embedded(np.concatenate(pooled), vectors[rows], regions)


def _with_volumes(
    loaded: LoadedModel,
    store: Store,
    cases: Cases,
    texts: Float[np.ndarray, "texts dim"],
    pool: OrganPool | None,
    progress: Progress | None,
) -> Embedded:
    pooled: list[Float[np.ndarray, "one dim"]] = []
    regions: dict[int, ImageVectors] = {}
    parts: dict[int, PartVectors] = {}
    volumes = volume_vectors(loaded, (store.pixels(record) for record in cases.images))
    for row, (record, found) in enumerate(zip(cases.images, volumes, strict=True)):
        pooled.append(found.pooled)
        if record.boxes:
            regions[row] = found
        if record.parts_size:
            parts[row] = _parts(loaded, store, record, found, pool)
        if progress is not None:
            progress(row + 1, len(cases.images), "embedding volumes")
    return Embedded(np.concatenate(pooled), texts, regions, parts)


def _parts(
    loaded: LoadedModel, store: Store, record: Record, found: ImageVectors, pool: OrganPool | None
) -> PartVectors:
    numbers = store.parts(record)
    assert numbers is not None and found.lattice is not None and isinstance(loaded.pixels, VolumeSpec)
    cells = part_cells(numbers, lattice=found.lattice, grid=found.grid, parts=len(loaded.pixels.parts))
    return part_vectors(found.regions[0], cells & found.mask[0][:, None], pool=pool)
