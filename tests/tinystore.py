"""A separable record store of tiny pictures, written with the store's own writer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvl.records import Record
from medvl.specs import PixelSpec, ReportSpec, text_hash
from medvl.splits import split_of
from medvl.store import FORMAT, INDEX_SCHEMA, record_row, write_shard

WORDS = ("a round opacity", "a square opacity", "clear lungs")

SMALL = (
    "input.size_px=[32,32]",
    "data.batch=12",
    "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3}",
    "text.options={layers: 1, width: 32, heads: 2}",
    "text.vocab_size=400",
    "projection.dim=16",
    "machine.tensorboard=false",
)
"""Overrides that make any compact recipe tiny."""


def write_tiny(path: Path, *, n: int = 48, size: int = 32, seed: int = 0, own_words: bool = True) -> Path:
    """Write n records of three classes; each report names its class and, if asked, its own number."""
    rng = np.random.default_rng(seed)
    (path / "shards").mkdir(parents=True)
    samples = []
    for i in range(n):
        kind = i % 3
        picture = rng.integers(0, 40, (size, size)).astype(np.uint8)
        if kind == 0:
            picture[8:16, 8:16] = 220
        if kind == 1:
            picture[18:28, 4:28] = 160
        sentences = (f"There is {WORDS[kind]}.", *([f"Case {i} is seen."] if own_words else []))
        text = " ".join(sentences)
        record = Record(
            record_id=f"r{i:04d}",
            study_id=f"s{i:04d}",
            patient_id=f"p{i:04d}",
            modality="cxr",
            split=split_of(f"p{i:04d}", fractions=(0.7, 0.2, 0.1)),
            source_kind="raster",
            report=text,
            retrieval=sentences,
            generation=sentences[:1],
            text_hash=text_hash(text),
            pixel_hash=f"{i:04d}",
            pixel_digest=PixelSpec().digest,
            report_digest=ReportSpec().digest,
            shape=(size, size),
            dtype="uint8",
            source_shape=(size, size),
            labels={"nodule": "present" if kind == 0 else "absent"},
        )
        samples.append((record, picture))
    write_store(path, samples)
    return path


def write_store(path: Path, samples: list) -> None:
    placed = write_shard(path / "shards" / "000000.tar", samples)
    table = pa.Table.from_pylist([record_row(record) for record in placed], schema=INDEX_SCHEMA)
    pq.write_table(table, path / "index.parquet")
    specs = {"pixels": PixelSpec().model_dump(mode="json"), "report": ReportSpec().model_dump(mode="json")}
    (path / "store.json").write_text(json.dumps({"format": FORMAT, "modality": "cxr", "specs": specs}))
