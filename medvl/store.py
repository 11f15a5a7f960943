"""The record store on disk: WebDataset tar shards, a Parquet index and a manifest.

Layout of a store::

    store.json         format, modality, specs with digests, counts, options of the run
    index.parquet      one row a record: text, labels, geometry, hashes, shard, offset, size, crc32
    shards/000000.tar  per record <id>.npy.b2 (blosc2-compressed .npy), <id>.txt and <id>.json
    failures.jsonl     one line a failed item: token, rule, message
    quality.html       the page to look at
    private/           pseudonym key and the table from file tokens to source paths: never share it

Nothing outside ``private/`` names a patient or a source file.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from medvl.errors import StoreError
from medvl.records import Box, Record, Section, Sentence

__all__ = ["FORMAT", "INDEX_SCHEMA", "Store", "pack", "record_row", "row_record", "unpack", "write_atomic", "write_shard"]

FORMAT = "medvl-store-1"

_TEXT = pa.string()
INDEX_SCHEMA = pa.schema(
    [
        ("record_id", _TEXT),
        ("study_id", _TEXT),
        ("patient_id", _TEXT),
        ("modality", _TEXT),
        ("split", _TEXT),
        ("source_kind", _TEXT),
        ("view", _TEXT),
        ("laterality", _TEXT),
        ("report", _TEXT),
        ("retrieval", pa.list_(_TEXT)),
        ("generation", pa.list_(_TEXT)),
        ("sections", _TEXT),
        ("sentences", _TEXT),
        ("labels", _TEXT),
        ("boxes", _TEXT),
        ("text_hash", _TEXT),
        ("pixel_hash", _TEXT),
        ("pixel_digest", _TEXT),
        ("report_digest", _TEXT),
        ("shape", pa.list_(pa.int32())),
        ("dtype", _TEXT),
        ("source_shape", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("spacing_frame", _TEXT),
        ("inverted", pa.bool_()),
        ("geometry", _TEXT),
        ("notes", pa.list_(_TEXT)),
        ("shard", _TEXT),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.int64()),
    ]
)
"""Columns of ``index.parquet``; ``sections``, ``sentences``, ``labels`` and ``boxes`` hold JSON."""

_JSON_FIELDS: dict[str, type | None] = {
    "sections": Section,
    "sentences": Sentence,
    "boxes": Box,
    "labels": None,
}


def pack(array: Shaped[np.ndarray, "..."]) -> bytes:
    """Return an array as a blosc2-compressed ``.npy`` stream (zstd, bit shuffle)."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return blosc2.compress2(
        stream.getvalue(),
        codec=blosc2.Codec.ZSTD,
        clevel=3,
        typesize=array.dtype.itemsize,
        filters=[blosc2.Filter.BITSHUFFLE],
        nthreads=1,
    )


def unpack(payload: bytes) -> Shaped[np.ndarray, "..."]:
    """Return the array of :func:`pack`."""
    return np.load(io.BytesIO(blosc2.decompress2(payload, nthreads=1)), allow_pickle=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the whole new one, whatever happens.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def record_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of the index."""
    row = dataclasses.asdict(record)
    for name in _JSON_FIELDS:
        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
    return row


def row_record(row: dict[str, Any]) -> Record:
    """Return the record of an index row."""
    values = {
        name: tuple(value) if isinstance(value, (list, np.ndarray)) else value
        for name, value in row.items()
    }
    for name, kind in _JSON_FIELDS.items():
        parsed = json.loads(values[name])
        if kind is not None:
            parsed = tuple(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}) for item in parsed)
        values[name] = parsed
    return Record(**values)


def write_shard(path: Path, samples: Iterable[tuple[Record, Shaped[np.ndarray, "..."]]]) -> list[Record]:
    """Write one shard atomically and return its records with shard, offset, size and crc32 filled in.

    The bytes depend on the samples alone: members have no time, owner or mode of their own.
    """
    stream = io.BytesIO()
    placed: list[Record] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record, array in samples:
            payload = pack(array)
            offset = _add(tar, f"{record.record_id}.npy.b2", payload)
            filled = dataclasses.replace(
                record, shard=path.name, offset=offset, size=len(payload), crc32=zlib.crc32(payload)
            )
            _add(tar, f"{record.record_id}.txt", "\n".join(record.retrieval).encode("utf-8", "replace"))
            about = {k: v for k, v in dataclasses.asdict(filled).items() if k not in ("shard", "offset", "size", "crc32")}
            _add(tar, f"{record.record_id}.json", json.dumps(about, sort_keys=True).encode())
            placed.append(filled)
    write_atomic(path, stream.getvalue())
    return placed


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    offset = tar.fileobj.tell() + tarfile.BLOCKSIZE  # type: ignore[union-attr]  # USTAR: one header block
    tar.addfile(member, io.BytesIO(data))
    return offset


class Store:
    """A record store opened for reading; cheap to pickle, safe to share between processes.

    Args:
        path: the folder that ``prepare`` wrote.

    Raises:
        StoreError: the folder is not a complete store of this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = self.path / "store.json"
        if not manifest.is_file() or not (self.path / "index.parquet").is_file():
            raise StoreError(
                "this folder is not a finished record store: store.json or index.parquet is missing.",
                hint="Run 'medvl <modality> prepare' again with the same arguments; it resumes.",
            )
        self.manifest: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
        if self.manifest.get("format") != FORMAT:
            raise StoreError(
                f"the store has format {self.manifest.get('format')!r}; this version reads {FORMAT!r}.",
                hint="Prepare it again.",
            )

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    @functools.cached_property
    def table(self) -> pa.Table:
        """The index as an Arrow table."""
        table = pq.read_table(self.path / "index.parquet")
        missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
        if missing:
            raise StoreError(f"the index lacks the columns {missing}.", hint="Prepare it again.")
        return table.select(INDEX_SCHEMA.names)

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """All records in the order of the index, which is that of ``record_id``."""
        return tuple(row_record(row) for row in self.table.to_pylist())

    def pixels(self, record: Record) -> Shaped[np.ndarray, "..."]:
        """Read one stored array by its offset.

        Raises:
            StoreError: the payload is cut short or its checksum differs.
        """
        shard = os.open(self.path / "shards" / record.shard, os.O_RDONLY)
        try:
            payload = os.pread(shard, record.size, record.offset)
        finally:
            os.close(shard)
        if len(payload) != record.size or zlib.crc32(payload) != record.crc32:
            raise StoreError(
                f"record {record.record_id} in shard {record.shard} is damaged: {len(payload)} of "
                f"{record.size} bytes, checksum {zlib.crc32(payload)} instead of {record.crc32}.",
                hint="Prepare the store again.",
            )
        return unpack(payload)

    def __iter__(self) -> Iterator[tuple[Record, Shaped[np.ndarray, "..."]]]:
        """Iterate over records and their arrays."""
        for record in self.records:
            yield record, self.pixels(record)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path alone; workers read the index again."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the store again."""
        self.__init__(state["path"])  # type: ignore[misc]
