"""Tar shards: written whole, byte for byte a function of their records, read by offset."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8

from medvl.errors import StoreError, UsageError
from medvl.records import Record
from medvl.store.files import atomic_file
from medvl.store.payload import PACKED, decode, pack
from medvl.store.schema import AGAIN
from medvl.store.volumes import VOLUME, pack_volume, read_patch

__all__ = [
    "Sample",
    "read_parts_payload",
    "read_payload",
    "read_pixels",
    "read_volume",
    "write_payloads",
    "write_shard",
]

Sample: TypeAlias = (
    tuple[Record, Shaped[np.ndarray, "..."]]
    | tuple[Record, Shaped[np.ndarray, "_ _ _"], UInt8[np.ndarray, "_ _ _"] | None]
    | tuple[Record, Shaped[np.ndarray, "..."], bytes, str]
)
"""A record and its array; a volume with the volume of its parts or None, both stored in chunks; or a record,
its array, the codestream of the source and its kind."""

_PLACE = ("shard", "offset", "size", "crc32", "parts_offset", "parts_size", "parts_crc32")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9]+")
_SHARD = re.compile(r"[A-Za-z0-9_-]+\.tar")


def write_shard(path: Path, samples: Iterable[Sample]) -> list[Record]:
    """Write one shard atomically and return its records with payload and place filled in.

    A sample may carry the codestream of its source (see :func:`medvl.store.original_payload`); it is stored
    instead of the packed array if it decodes to exactly the array and is smaller.

    Raises:
        StoreError: see :func:`write_payloads`.
    """
    return write_payloads(path, map(_coded, samples))  # a map keeps no sample while the next is made


def _coded(sample: Sample) -> tuple[Record, bytes, bytes]:
    if len(sample) == 3:
        record, volume, parts = sample
        if parts is not None and parts.shape != volume.shape:
            raise StoreError(
                f"record {record.record_id} has {volume.shape} voxels and parts of {parts.shape}.",
                hint="Bring the parts onto the grid of the volume (VolumeSpec.apply_parts).",
            )
        chunked = pack_volume(volume), b"" if parts is None else pack_volume(parts)
        return dataclasses.replace(record, payload=VOLUME), *chunked
    record, array = sample[0], sample[1]
    packed = pack(array)
    if len(sample) == 4:
        original, kind = sample[2], sample[3]
        if kind != PACKED and len(original) < len(packed) and _same(original, kind, array):
            return dataclasses.replace(record, payload=kind), original, b""
    return dataclasses.replace(record, payload=PACKED), packed, b""


def _same(original: bytes, kind: str, array: Shaped[np.ndarray, "..."]) -> bool:
    try:
        return bool((decode(original, kind, shape=array.shape, dtype=str(array.dtype)) == array).all())
    except StoreError:
        return False


def write_payloads(path: Path, samples: Iterable[tuple[Record, bytes, bytes]]) -> list[Record]:
    """Write one shard of payloads that are coded already, as ``record.payload`` says.

    A sample is a record, its payload, and that of its parts: b"" where it has none.

    One sample at a time is in memory. The bytes depend on the samples alone: members have no time, owner or
    mode of their own. A lone surrogate, which no file can hold, becomes U+FFFD in its place, so every span
    still fits.

    Raises:
        StoreError: an id is not letters and digits, or a number of a record is not finite.
    """
    placed: list[Record] = []
    with (
        atomic_file(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for given, payload, parts in samples:
            record = _writable(given)
            offset = _add(tar, f"{record.record_id}.{record.payload}", payload)
            parts_offset = _add(tar, f"{record.record_id}.parts.{VOLUME}", parts) if parts else 0
            _add(tar, f"{record.record_id}.txt", "\n".join(record.retrieval).encode())
            about = {k: v for k, v in dataclasses.asdict(record).items() if k not in _PLACE}
            _add(tar, f"{record.record_id}.json", json.dumps(about, sort_keys=True).encode())
            placed.append(
                dataclasses.replace(
                    record,
                    shard=path.name,
                    offset=offset,
                    size=len(payload),
                    crc32=zlib.crc32(payload),
                    parts_offset=parts_offset,
                    parts_size=len(parts),
                    parts_crc32=zlib.crc32(parts),
                )
            )
    return placed


def _writable(record: Record) -> Record:
    if not _ID.fullmatch(record.record_id):  # WebDataset cuts a key at its first dot
        raise StoreError(f"the record id {record.record_id!r} is not made of letters and digits alone.")
    sides = (v for b in record.boxes for v in (b.x0, b.y0, b.z0, b.x1, b.y1, b.z1) if v is not None)
    numbers = [*(record.spacing_mm or ()), *record.affine_ras, *sides]
    if not all(math.isfinite(value) for value in numbers):
        raise StoreError(
            f"record {record.record_id} has a spacing, an affine or a box that is not finite: {numbers}.",
            hint="Correct the header or the box table.",
        )

    def plain(lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_SURROGATE.sub("\ufffd", line) for line in lines)

    return dataclasses.replace(
        record,
        report=_SURROGATE.sub("\ufffd", record.report),
        changes=tuple(
            dataclasses.replace(change, shown=_SURROGATE.sub("\ufffd", change.shown))
            for change in record.changes
        ),
        retrieval=plain(record.retrieval),
        generation=plain(record.generation),
        rewritten=plain(record.rewritten),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    offset = tar.fileobj.tell() + tarfile.BLOCKSIZE  # type: ignore[union-attr]  # USTAR: one header block
    tar.addfile(member, io.BytesIO(data))
    return offset


def read_payload(shards: Path, record: Record) -> bytes:
    """Read the bytes of one payload from a folder of shards by their offset.

    Raises:
        StoreError: the shard is missing, the payload is cut short, or its checksum differs.
    """
    with _opened(shards, record) as shard:
        payload = os.pread(shard, record.size, record.offset)
    _check(record, payload, record.size, record.crc32)
    return payload


def read_parts_payload(shards: Path, record: Record) -> bytes:
    """Read the bytes of the parts of one record; b"" where it has none.

    Raises:
        StoreError: as for :func:`read_payload`.
    """
    if not record.parts_size:
        return b""
    with _opened(shards, record) as shard:
        payload = os.pread(shard, record.parts_size, record.parts_offset)
    _check(record, payload, record.parts_size, record.parts_crc32)
    return payload


def read_volume(
    shards: Path,
    record: Record,
    *,
    start: Sequence[int] | None = None,
    stop: Sequence[int] | None = None,
    parts: bool = False,
) -> Shaped[np.ndarray, "x y z"]:
    """Read a patch of a stored volume, or of its parts, without the rest of it.

    Args:
        shards: the folder.
        record: of a volume.
        start: first voxel along each axis; the first of all if None.
        stop: last voxel, exclusive; the end if None.
        parts: read the volume of parts instead.

    Raises:
        UsageError: the record is no volume or has no parts, or the patch leaves the volume.
        StoreError: the shard is missing, or a chunk of the patch is damaged.
    """
    offset, size = (record.parts_offset, record.parts_size) if parts else (record.offset, record.size)
    if record.payload != VOLUME or not size:
        what = "no volume of parts" if parts else f"a payload of kind {record.payload!r}, no volume"
        raise UsageError(f"record {record.record_id} has {what}.", hint="Read it with Store.pixels.")
    with _opened(shards, record) as shard:
        return read_patch(
            lambda first, count: os.pread(shard, count, offset + first),
            size,
            shape=record.shape,
            dtype="uint8" if parts else record.dtype,
            start=start,
            stop=stop,
        )


@contextlib.contextmanager
def _opened(shards: Path, record: Record) -> Iterator[int]:
    if not _SHARD.fullmatch(record.shard):
        raise StoreError(f"{record.shard!r} is not the name of a shard.", hint=AGAIN)
    try:
        shard = os.open(f"{shards}/{record.shard}", os.O_RDONLY)  # joining paths takes longer
    except FileNotFoundError as error:
        raise StoreError(f"shard {record.shard} is missing.", hint=AGAIN) from error
    try:
        yield shard
    finally:
        os.close(shard)


def _check(record: Record, payload: bytes, size: int, crc32: int) -> None:
    if len(payload) != size or zlib.crc32(payload) != crc32:
        raise StoreError(
            f"record {record.record_id} in shard {record.shard} is damaged: {len(payload)} of "
            f"{size} bytes, checksum {zlib.crc32(payload)} instead of {crc32}.",
            hint=AGAIN,
        )


def read_pixels(
    shards: Path, record: Record, *, room: UInt8[np.ndarray, " bytes"] | None = None
) -> Shaped[np.ndarray, "..."]:
    """Read one stored array from a folder of shards by its offset, into ``room`` if it is large enough.

    Raises:
        StoreError: see :func:`read_payload`; or the payload is not what the record promises.
    """
    payload = read_payload(shards, record)
    return decode(payload, record.payload, shape=record.shape, dtype=record.dtype, room=room)
