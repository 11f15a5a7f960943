"""From a model and a record store to an index of cases: embed once, add, replace, erase."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Shaped
from PIL import Image as Pillow

from medvl.errors import DigestMismatch
from medvl.modeldir import LoadedModel
from medvl.notice import NOTICE
from medvl.planes import record_montage
from medvl.progress import Progress
from medvl.records import IS_PRESENT, Record
from medvl.retrieval.lance import EXACT_ROWS, LanceIndex
from medvl.retrieval.vectors import index_schema
from medvl.store import Store

__all__ = ["IndexSummary", "build_index"]

_CHUNK = 256
_THUMBNAIL_PX, _MONTAGE_PX = 160, 280
_RECALL_QUERIES = 64


@dataclass(frozen=True)
class IndexSummary:
    """What an indexing run did."""

    records: int
    total: int
    dim: int
    exact: bool
    recall_at_10: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.__dict__}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        how = (
            f"exact (up to {EXACT_ROWS} rows)"
            if self.exact
            else f"HNSW graph, recall@10 {self.recall_at_10:.4f} of exact search ({_RECALL_QUERIES} queries)"
        )
        return [
            f"{self.records} records embedded; the index holds {self.total} vectors of length {self.dim}",
            f"search: {how}",
            NOTICE,
        ]


def build_index(
    model: LoadedModel,
    store: Store,
    uri: str | Path,
    *,
    about: dict[str, Any],
    progress: Progress | None = None,
) -> IndexSummary:
    """Embed every record of a store and add it to the index at ``uri``, which is made if need be.

    A record that is in the index already is replaced. The index remembers the model's digest, and
    refuses vectors of another model.

    Args:
        model: the model that embeds; its pixel spec must be the store's.
        store: the records.
        uri: folder or ``s3://`` address of the index.
        about: more JSON values to keep with a new index, such as the bundle's path.
        progress: called as records are embedded.

    Raises:
        DigestMismatch: the store was prepared by another spec, or the index by another model.
    """
    if store.records:
        model.pixels.require(store.records[0].pixel_digest)
    index = _open(model, uri, about)
    for start, rows in _embedded(model, store):
        index.upsert(rows)
        if progress is not None:
            progress(min(start + _CHUNK, len(store)), len(store), "embedding")
    graph = index.build_graph()
    recall = _recall(index) if graph else 1.0
    return IndexSummary(len(store), index.count(), index.dim, not graph, recall)


def _open(model: LoadedModel, uri: str | Path, about: dict[str, Any]) -> LanceIndex:
    if LanceIndex.exists(uri):
        index = LanceIndex(uri)
        if index.about.get("model_digest") != model.digest:
            raise DigestMismatch(
                "index's model",
                got=model.digest,
                expected=str(index.about.get("model_digest")),
                hint="Index with the bundle that made it, or into a new folder.",
            )
        return index
    dim = int(model.embed_texts(["."]).shape[1])
    return LanceIndex.create(uri, dim=dim, about={**about, "model_digest": model.digest})


def _embedded(model: LoadedModel, store: Store) -> Iterator[tuple[int, pa.Table]]:
    records = store.records
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        thumbnails: list[bytes] = []
        # Read as they are needed: a chunk of volumes would fill memory.
        images = model.embed_images(_shown(store, record, thumbnails) for record in chunk)
        yield start, _rows(chunk, thumbnails, images, _text_vectors(model, chunk, images.shape[1]))


def _shown(store: Store, record: Record, thumbnails: list[bytes]) -> Shaped[np.ndarray, "..."]:
    """Return the stored array, after its thumbnail has joined ``thumbnails``."""
    stored = store.pixels(record)
    thumbnails.append(_thumbnail(record, stored))
    return stored


def _text_vectors(model: LoadedModel, chunk: Sequence[Record], dim: int) -> Float32[np.ndarray, "n dim"]:
    vectors = np.zeros((len(chunk), dim), np.float32)
    written = [number for number, record in enumerate(chunk) if record.retrieval]
    if written:
        vectors[written] = model.embed_texts([list(chunk[number].retrieval) for number in written])
    return vectors


def _rows(
    chunk: Sequence[Record],
    thumbnails: Sequence[bytes],
    images: Float32[np.ndarray, "n dim"],
    texts: Float32[np.ndarray, "n dim"],
) -> pa.Table:
    rows = [
        {
            "record_id": record.record_id,
            "study_id": record.study_id,
            "patient_id": record.patient_id,
            "modality": record.modality,
            "view": record.view,
            "laterality": record.laterality,
            "split": record.split,
            "findings": sorted(name for name, state in record.labels.items() if IS_PRESENT.get(state)),
            "report": " ".join(record.retrieval),
            "text_hash": record.text_hash,
            "thumbnail": thumbnail,
            "vector": image,
            "text_vector": text,
        }
        for record, thumbnail, image, text in zip(chunk, thumbnails, images, texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=index_schema(images.shape[1]))


def _thumbnail(record: Record, stored: Shaped[np.ndarray, "..."]) -> bytes:
    if stored.ndim == 3:
        picture = record_montage(record, stored, side_px=_MONTAGE_PX)
    else:
        picture = Pillow.fromarray(stored)
        picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _recall(index: LanceIndex) -> float:
    """Measure recall on disturbed copies of stored vectors, so that no row equals the query."""
    queries = index.sample(_RECALL_QUERIES)
    noise = np.random.default_rng(0).normal(0, 0.3 / np.sqrt(index.dim), queries.shape)
    return index.measure_recall((queries + noise).astype(np.float32))
