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
import hashlib
import io
import json
import math
import os
import re
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
from medvl.records import Box, Change, Record, Section, Sentence, TextRegion
from medvl.specs import PixelSpec, ReportSpec

__all__ = [
    "FORMAT",
    "INDEX_SCHEMA",
    "Store",
    "file_sha256",
    "index_bytes",
    "pack",
    "read_pixels",
    "record_row",
    "row_record",
    "unpack",
    "write_atomic",
    "write_shard",
]

FORMAT = "medvl-store-2"

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
        ("changes", _TEXT),
        ("redactions", _TEXT),
        ("rewritten", pa.list_(_TEXT)),
        ("labels", _TEXT),
        ("said", _TEXT),
        ("boxes", _TEXT),
        ("text_regions", _TEXT),
        ("text_fraction", pa.float64()),
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
        ("payload", _TEXT),
        ("shard", _TEXT),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.int64()),
    ]
)
"""Columns of ``index.parquet``; those of ``_JSON_FIELDS`` hold JSON."""

_JSON_FIELDS: dict[str, type | None] = {
    "sections": Section,
    "sentences": Sentence,
    "boxes": Box,
    "changes": Change,
    "text_regions": TextRegion,
    "labels": None,
    "redactions": None,
    "said": None,
}
_PLACE = ("shard", "offset", "size", "crc32")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9]+")
_SHARD = re.compile(r"[A-Za-z0-9_-]+\.tar")
_AGAIN = "Prepare the store again."


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
    """Return the array of :func:`pack`.

    Raises:
        StoreError: the payload is not a compressed array.
    """
    try:
        return np.load(io.BytesIO(blosc2.decompress2(payload, nthreads=1)), allow_pickle=False)
    except (RuntimeError, ValueError, EOFError, TypeError) as error:
        raise StoreError(f"a payload of {len(payload)} bytes is not a packed array.", hint=_AGAIN) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, as every manifest lists it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the whole new one, whatever happens.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
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
    """Return the record of an index row.

    Raises:
        StoreError: a column does not hold what the schema says.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, (list, np.ndarray)) else value for name, value in row.items()
    }
    try:
        for name, kind in _JSON_FIELDS.items():
            parsed: Any = json.loads(values[name])
            if kind is not None:
                parsed = tuple(kind(**{k: _tupled(v) for k, v in item.items()}) for item in parsed)
            values[name] = parsed
        return Record(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise StoreError("a row of the index cannot be read as a record.", hint=_AGAIN) from error


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def index_bytes(records: Iterable[Record]) -> bytes:
    """Return ``index.parquet``: one row a record, ordered by ``record_id``."""
    rows = [record_row(record) for record in sorted(records, key=lambda record: record.record_id)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[Record, Shaped[np.ndarray, "..."]]]) -> list[Record]:
    """Write one shard atomically and return its records with shard, offset, size and crc32 filled in.

    The bytes depend on the samples alone: members have no time, owner or mode of their own. A lone
    surrogate, which no file can hold, becomes U+FFFD in its place, so every span still fits.

    Raises:
        StoreError: an id is not letters and digits, or a number of a record is not finite.
    """
    stream = io.BytesIO()
    placed: list[Record] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for given, array in samples:
            record = _writable(given)
            payload = pack(array)
            offset = _add(tar, f"{record.record_id}.npy.b2", payload)
            _add(tar, f"{record.record_id}.txt", "\n".join(record.retrieval).encode())
            about = {k: v for k, v in dataclasses.asdict(record).items() if k not in _PLACE}
            _add(tar, f"{record.record_id}.json", json.dumps(about, sort_keys=True).encode())
            placed.append(
                dataclasses.replace(
                    record, shard=path.name, offset=offset, size=len(payload), crc32=zlib.crc32(payload)
                )
            )
    write_atomic(path, stream.getvalue())
    return placed


def _writable(record: Record) -> Record:
    if not _ID.fullmatch(record.record_id):  # WebDataset cuts a key at its first dot
        raise StoreError(f"the record id {record.record_id!r} is not made of letters and digits alone.")
    numbers = [*(record.spacing_mm or ()), *(v for b in record.boxes for v in (b.x0, b.y0, b.x1, b.y1))]
    if not all(math.isfinite(value) for value in numbers):
        raise StoreError(
            f"record {record.record_id} has a spacing or a box that is not finite: {numbers}.",
            hint="Correct the header or the box table.",
        )
    return dataclasses.replace(
        record,
        report=_SURROGATE.sub("\ufffd", record.report),
        retrieval=tuple(_SURROGATE.sub("\ufffd", line) for line in record.retrieval),
        generation=tuple(_SURROGATE.sub("\ufffd", line) for line in record.generation),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    offset = tar.fileobj.tell() + tarfile.BLOCKSIZE  # type: ignore[union-attr]  # USTAR: one header block
    tar.addfile(member, io.BytesIO(data))
    return offset


def read_pixels(shards: Path, record: Record) -> Shaped[np.ndarray, "..."]:
    """Read one stored array from a folder of shards by its offset.

    Raises:
        StoreError: the shard is missing, the payload is cut short, or its checksum differs.
    """
    if not _SHARD.fullmatch(record.shard):
        raise StoreError(f"{record.shard!r} is not the name of a shard.", hint=_AGAIN)
    try:
        shard = os.open(shards / record.shard, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StoreError(f"shard {record.shard} is missing.", hint=_AGAIN) from error
    try:
        payload = os.pread(shard, record.size, record.offset)
    finally:
        os.close(shard)
    if len(payload) != record.size or zlib.crc32(payload) != record.crc32:
        raise StoreError(
            f"record {record.record_id} in shard {record.shard} is damaged: {len(payload)} of "
            f"{record.size} bytes, checksum {zlib.crc32(payload)} instead of {record.crc32}.",
            hint=_AGAIN,
        )
    return unpack(payload)


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
        self.manifest: dict[str, Any] = _read_manifest(manifest)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    @property
    def pixel_spec(self) -> PixelSpec:
        """The spec that made the stored arrays."""
        return PixelSpec.from_json(self._spec("pixels"))

    @property
    def report_spec(self) -> ReportSpec:
        """The spec that made the text views."""
        return ReportSpec.from_json(self._spec("report"))

    def _spec(self, name: str) -> dict[str, Any]:
        try:
            return dict(self.manifest["specs"][name])
        except (KeyError, TypeError) as error:
            raise StoreError(f"store.json holds no {name} spec.", hint=_AGAIN) from error

    @functools.cached_property
    def table(self) -> pa.Table:
        """The index as an Arrow table; ``store.table.to_pandas()`` is a data frame to filter.

        Raises:
            StoreError: the index is damaged, or is not the one that the manifest describes.
        """
        data = (self.path / "index.parquet").read_bytes()
        promised = self.manifest.get("index", {}).get("blake2b")
        found = hashlib.blake2b(data, digest_size=16).hexdigest()
        if promised is not None and promised != found:
            raise StoreError(
                f"index.parquet is damaged: its checksum is {found} instead of {promised}.", hint=_AGAIN
            )
        try:
            table = pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise StoreError("index.parquet is damaged: it is not a Parquet file.", hint=_AGAIN) from error
        missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
        if missing:
            raise StoreError(f"the index lacks the columns {missing}.", hint=_AGAIN)
        return table.select(INDEX_SCHEMA.names)

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """All records in the order of the index, which is that of ``record_id``."""
        return tuple(row_record(row) for row in self.table.to_pylist())

    def pixels(self, record: Record) -> Shaped[np.ndarray, "..."]:
        """Read one stored array by its offset.

        Raises:
            StoreError: the shard is missing, the payload is cut short, or its checksum differs.
        """
        return read_pixels(self.path / "shards", record)

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


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError("store.json is damaged: it is not JSON.", hint=_AGAIN) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise StoreError(f"the store has format {got!r}; this version reads {FORMAT!r}.", hint=_AGAIN)
    return manifest
